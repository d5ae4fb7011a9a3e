"""Scans that arrive in a folder: seen, classified once, written down and moved, whatever ends the program."""
