"""The barest script that classifies one scan with ONNX Runtime: what `mri-edge predict` is measured against."""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, scan = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
pixels = np.asarray(Image.open(scan).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))
print(session.run(None, {session.get_inputs()[0].name: pixels[None]})[0])
