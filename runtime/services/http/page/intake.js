/* Find out what was dropped, chosen or pasted, and which files belong together. */

const PICTURES = /\.(jpe?g|png|bmp|tiff?|webp|gif|p[bgnp]m)$/i;
const DICOM = /\.(dcm|dicom|ima)$/i;
const VOLUMES = /\.(nii|nii\.gz|zip)$/i;
const HIDDEN = /(^|\/)(\.|__MACOSX\/|DICOMDIR$|Thumbs\.db$)/i;
const MOST_FILES = 10_000; // as the server accepts in one upload
const READ_TOGETHER = 16;

/** A file, its path as people know it, and whether it was named itself and not found in a folder. */
const found = (file, path, named) => ({ file, path: path || file.name, named });

/** Return the files of an <input>. */
export function ofInput(input) {
  return [...input.files].map((file) => found(file, file.webkitRelativePath, !file.webkitRelativePath));
}

/** Return the files of a drop or a paste, with those in folders. Call it in the event: the list is emptied after it. */
export async function ofTransfer(transfer) {
  const files = [];
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => [item.webkitGetAsEntry?.() ?? null, item.getAsFile()]);
  for (const [entry, file] of entries) {
    if (entry?.isDirectory) await walk(entry, files);
    else if (file) files.push(found(file, file.name, true));
  }
  return files;
}

async function walk(folder, files) {
  const reader = folder.createReader();
  for (;;) {
    // a browser gives at most 100 entries at a time
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length || files.length > MOST_FILES) return;
    for (const entry of entries) {
      if (entry.isDirectory) {
        await walk(entry, files);
      } else {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
        files.push(found(file, entry.fullPath.replace(/^\//, ""), false));
      }
    }
  }
}

/**
 * Return the requests to send, and notes about files that are left out.
 *
 * A picture is a request of its own, because it says nothing about its neighbors. All DICOM files go into one request,
 * and the server groups them into series. So does a zip file or a volume.
 */
export async function plan(files) {
  const notes = [];
  if (files.length > MOST_FILES) {
    notes.push(
      `Only the first ${MOST_FILES.toLocaleString("en")} files are used. Choose a smaller folder for the others.`,
    );
  }
  const taken = files
    .slice(0, MOST_FILES)
    .sort((one, other) => one.path.localeCompare(other.path, "en", { numeric: true }));
  const jobs = [];
  const dicom = [];
  const skipped = [];
  const kinds = await kindsOf(taken);
  taken.forEach((each, number) => {
    const kind = kinds[number];
    if (kind === "dicom") dicom.push(each);
    else if (kind === "volume") jobs.push({ name: each.path, files: [each], bySeries: true });
    else if (kind === "picture" || each.named) jobs.push({ name: each.path, files: [each], bySeries: false });
    else if (kind === "other") skipped.push(each.path);
  });
  if (dicom.length === 1) jobs.unshift({ name: dicom[0].path, files: dicom, bySeries: false });
  if (dicom.length > 1)
    jobs.unshift({ name: `${dicom.length.toLocaleString("en")} DICOM files`, files: dicom, bySeries: true });
  if (skipped.length) {
    const names = skipped.slice(0, 3).join(", ") + (skipped.length > 3 ? ", …" : "");
    notes.push(
      skipped.length === 1
        ? `1 file was skipped, because it is no scan: ${names}.`
        : `${skipped.length.toLocaleString("en")} files were skipped, because they are no scans: ${names}.`,
    );
  }
  if (!jobs.length && !skipped.length) notes.push("There are no files in it.");
  return { jobs, notes };
}

async function kindsOf(files) {
  const kinds = [];
  for (let start = 0; start < files.length; start += READ_TOGETHER) {
    kinds.push(...(await Promise.all(files.slice(start, start + READ_TOGETHER).map(kindOf))));
  }
  return kinds;
}

async function kindOf({ file, path, named }) {
  if (!named && HIDDEN.test(path)) return "hidden";
  if (VOLUMES.test(path)) return "volume";
  if (DICOM.test(path)) return "dicom";
  if (PICTURES.test(path)) return "picture";
  const magic = await file
    .slice(128, 132)
    .text()
    .catch(() => "");
  return magic === "DICM" ? "dicom" : "other";
}
