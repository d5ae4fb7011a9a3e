"""A DICOM node: it receives series from a scanner, classifies them, and sends reports to an archive (PACS)."""
