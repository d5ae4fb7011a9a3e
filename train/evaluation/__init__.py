"""Metrics, intervals, calibration and comparisons of models."""
