"""Commands beyond one run: watch a folder, answer over HTTP, receive by DICOM, and classify archives on a cluster."""
