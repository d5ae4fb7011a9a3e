"""Scans a second from files and from arrays in memory, in turn, in one engine: MODEL FOLDER ROUNDS; one JSON object.

Also what decoding and resizing alone would reach: below the engine's rate they are the bound.
"""

import json
import os
import sys
import time
from statistics import median

import numpy as np

from mri_edge import Classifier
from mri_edge.scans.readers import picture

model, folder, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
paths = sorted(entry.path for entry in os.scandir(folder))
classifier = Classifier.load(model, provider="cpu")
fit = classifier.bundle.manifest.preprocessing.fit
batch = np.stack([fit(picture.load(path)) for path in paths[: classifier.batch_size]])


def from_files():
    for _ in classifier.predict_batches(paths):
        pass


def from_memory():
    for first in range(0, len(paths), len(batch)):
        classifier.engine.run(batch[: len(paths) - first])  # as from files: the last batch is what is left


def prepare():
    for path in paths[::10]:
        fit(picture.load(path))


def rate(call, count):
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


rates = {"files": [], "memory": [], "decoding on one core": []}
for number in range(rounds + 1):
    found = rate(from_files, len(paths)), rate(from_memory, len(paths)), rate(prepare, len(paths[::10]))
    if number:
        for name, one in zip(rates, found, strict=True):
            rates[name].append(one)
print(json.dumps({name: median(found) for name, found in rates.items()}))
