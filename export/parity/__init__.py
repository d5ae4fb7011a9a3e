"""Comparing an artifact with the Keras model: figures, gate, page."""
