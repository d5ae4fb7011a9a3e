"""Measuring on the device: artifacts in engines, each in a process of its own, by scenarios with stated rules."""
