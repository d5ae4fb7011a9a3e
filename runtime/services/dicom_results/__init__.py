"""Results as DICOM objects that an archive files with the study of the scan: a report, and heatmaps as captures."""
