"""Measure artifacts in engines on this device: scenarios, isolated processes, tuning."""
