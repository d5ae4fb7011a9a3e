"""Conversion to TFLite and its precisions."""
