"""Classify the scans that arrive in a folder, each once, whatever ends the program."""
