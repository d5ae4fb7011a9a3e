"""Measure mri-edge beside the libraries and programs that people would use instead."""
