"""Receive scans, classify them, and answer with the objects of ``mri-edge predict --json``."""
