"""The comparison of each artefact with the Keras model, and the gate that judges it."""
