"""Where models come from: a trained bundle, or a Keras file or SavedModel made elsewhere."""
