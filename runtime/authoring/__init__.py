"""Write bundles: code that train, export and `mri-edge bundle` need, and a device does not."""
