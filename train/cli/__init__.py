"""The commands `mri-edge train` and `mri-edge evaluate`."""
