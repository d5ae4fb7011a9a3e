/* The demo scans that the package contains. */

export const demos = [
  {
    name: "phantom-3.jpg",
    title: "A slice with drawn lesions",
    text: "JPEG",
    picture: "page/demo/phantom-3.jpg",
  },
  {
    name: "mni152-slice-2.jpg",
    title: "A slice without a lesion",
    text: "JPEG",
    picture: "page/demo/mni152-slice-2.jpg",
  },
  {
    name: "mni152-slice-2-lossless.dcm",
    title: "The same slice as a scanner stores it",
    text: "DICOM, JPEG Lossless",
    mark: "DICOM",
  },
  {
    name: "phantom-series.nii.gz",
    title: "A series of 20 slices with a drawn lesion",
    text: "NIfTI",
    mark: "NIfTI",
  },
];

/** Return a demo scan as a file. */
export async function fetchDemo({ name }) {
  const answer = await fetch(new URL(`page/demo/${name}`, document.baseURI));
  if (!answer.ok) throw new Error(`the demo scan ${name} is missing on the server`);
  return new File([await answer.blob()], name);
}
