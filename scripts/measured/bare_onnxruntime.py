"""Classify a scan with the shortest ONNX Runtime script, to which `mri-edge predict` is compared.

Arguments: MODEL SCAN [THREADS]; by default the library chooses the threads.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, scan, *threads = sys.argv[1:]
options = onnxruntime.SessionOptions()
if threads:
    options.intra_op_num_threads = int(threads[0])
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
size = entry.shape[2], entry.shape[1]
pixels = np.asarray(Image.open(scan).convert("RGB").resize(size, Image.Resampling.BILINEAR))
print(session.run(None, {entry.name: pixels[None]})[0])
