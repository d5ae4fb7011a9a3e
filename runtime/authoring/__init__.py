"""Writing bundles: what train, export and `mri-edge bundle` need and a device does not."""
