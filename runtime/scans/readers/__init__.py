"""Readers of scan files, one file a format."""
