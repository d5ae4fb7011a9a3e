"""Export room: from a bundle's Keras model to ONNX and TFLite, parity proven. Needs the extra ``export``."""
