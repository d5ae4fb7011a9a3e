"""Classify scans as a notebook does: load the .keras file, then `model.predict`. Arguments: MODEL SCAN..."""

import sys

import keras
import numpy as np
from PIL import Image

model, *scans = sys.argv[1:]
network = keras.models.load_model(model, compile=False)
for scan in scans:
    pixels = np.asarray(Image.open(scan).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))
    print(network.predict(pixels[None, :, :, ::-1] / np.float32(255), verbose=0))
