"""The commands, one file each. ``mri_edge.cli`` lists them and imports only the one that runs."""
