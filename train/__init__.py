"""Training room: from a folder of scans to a bundle with a Keras model. Needs the extra ``train``."""
