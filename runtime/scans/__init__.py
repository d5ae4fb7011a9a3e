"""A scan, from a file to the network's input."""
