"""Decode pictures and run a model with Pillow and ONNX Runtime alone, as the servers do that are compared."""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image


class Model:
    """An ONNX model that takes uint8 (N, H, W, 3) and gives probabilities, on as many threads as there are cores."""

    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])
        self.entry = self.session.get_inputs()[0]
        self.output = self.session.get_outputs()[0].name

    def decode(self, content: bytes) -> np.ndarray:
        """Return the tensor of a picture, uint8 (H, W, 3)."""
        return self.resize(Image.open(io.BytesIO(content)))

    def resize(self, picture: Image.Image) -> np.ndarray:
        """Return the tensor of a picture, uint8 (H, W, 3)."""
        size = self.entry.shape[2], self.entry.shape[1]
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))

    def run(self, tensors: list[np.ndarray]) -> list[list[float]]:
        """Return the probabilities of each picture."""
        return self.session.run([self.output], {self.entry.name: np.stack(tensors)})[0].tolist()
