"""Print the scans a second from files, from arrays in memory, and of decoding and resizing alone, as JSON.

Arguments: MODEL FOLDER ROUNDS. The three run in turn, in one process.
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
resize = classifier.bundle.manifest.preprocessing.resize_picture
batch = np.stack([resize(picture.load(path)) for path in paths[: classifier.batch_size]])


def from_files():
    for _ in classifier.predict_batches(paths):
        pass


def from_memory():
    for first in range(0, len(paths), len(batch)):
        classifier.engine.run(batch[: len(paths) - first])  # the last batch is smaller, as from files


def prepare():
    for path in paths[::10]:
        resize(picture.load(path))


def rate(call, count):
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


rates = {"files": [], "memory": [], "decoding on one core": []}
for number in range(rounds + 1):
    found = rate(from_files, len(paths)), rate(from_memory, len(paths)), rate(prepare, len(paths[::10]))
    if number:
        for name, value in zip(rates, found, strict=True):
            rates[name].append(value)
print(json.dumps({name: median(found) for name, found in rates.items()}))
