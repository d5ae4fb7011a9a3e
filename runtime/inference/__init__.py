"""From scan to prediction: choosing and loading a model, running it, and what goes with its answer."""
