"""The commands `mri-edge train`, `mri-edge evaluate` and `mri-edge recalibrate`."""
