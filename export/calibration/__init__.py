"""Choosing images and ranges for int8."""
