"""Classify whole archives with Ray Data. This is the only package that imports ``ray``."""
