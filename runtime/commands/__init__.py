"""One file a command; ``mri_edge.cli`` holds the table and imports each only when it is chosen."""
