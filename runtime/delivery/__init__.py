"""A bundle on its way to a device: packed into one file, signed, checked and unpacked."""
