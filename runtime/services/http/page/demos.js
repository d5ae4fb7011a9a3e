/* The demo scans that the package contains. */

export const demos = [
  { name: "phantom-2.jpg", title: "With a drawn lesion", text: "A picture (JPEG)", picture: "page/demo/phantom-2.jpg" },
  { name: "mni152-slice-2.jpg", title: "Without a lesion", text: "A picture (JPEG)", picture: "page/demo/mni152-slice-2.jpg" },
  { name: "mni152-slice-2-lossless.dcm", title: "The same from a scanner", text: "A slice in DICOM", mark: "DICOM" },
];

/** Return a demo scan as a file. */
export async function fetchDemo({ name }) {
  const answer = await fetch(new URL(`page/demo/${name}`, document.baseURI));
  if (!answer.ok) throw new Error(`the demo scan ${name} is missing on the server`);
  return new File([await answer.blob()], name);
}
