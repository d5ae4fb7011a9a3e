"""Measuring on the device: artefacts in engines, each in a process of its own, by scenarios with stated rules."""
