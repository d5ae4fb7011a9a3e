"""Conversion to ONNX and its precisions."""
