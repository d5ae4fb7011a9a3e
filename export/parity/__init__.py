"""The comparison of each artifact with the Keras model, and the gate that judges it."""
