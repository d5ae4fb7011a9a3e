"""Classify scans with the shortest ONNX Runtime script, to which `mri-edge predict` is compared.

Arguments: MODEL THREADS SCAN...; with 0 threads the library chooses.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

model, threads, *scans = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
size = entry.shape[2], entry.shape[1]
for scan in scans:
    pixels = np.asarray(Image.open(scan).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    print(session.run(None, {entry.name: pixels[None]})[0])
