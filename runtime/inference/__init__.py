"""From scan to prediction: choose, load and run a model, and describe its answer."""
