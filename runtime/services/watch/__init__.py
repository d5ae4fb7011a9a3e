"""Classify the scans that arrive in a folder, each exactly once, even if the program is killed."""
