"""Commands that run as services: watch a folder, answer over HTTP, and receive by DICOM."""
