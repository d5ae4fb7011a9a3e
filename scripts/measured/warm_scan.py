"""Print median milliseconds of warm single scans, from file to answer, as JSON. Arguments: MODEL SCAN ROUNDS.

Each round measures the whole prediction, the engine's run inside it, and Pillow alone decoding, and decoding and
resizing, the same file. "own" is CPU time of the calling thread, which other programs do not affect: the prediction
without the engine's run and Pillow's decoding.
"""

import json
import sys
import time
from statistics import median

import numpy as np
from PIL import Image

from mri_edge import Classifier

model, scan, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
classifier = Classifier.load(model, provider="cpu", workload="single")
size = (classifier.engine.input.shape[2], classifier.engine.input.shape[1])
run_all = classifier.engine.run_all
inside = [0.0, 0.0]


def timed_run(batch):
    wall, busy = time.perf_counter(), time.thread_time()
    outputs = run_all(batch)
    inside[:] = time.perf_counter() - wall, time.thread_time() - busy
    return outputs


def decode():
    with Image.open(scan) as image:
        np.asarray(image)


def decode_and_resize():
    with Image.open(scan) as image:
        np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def measure(call):
    wall, busy = time.perf_counter(), time.thread_time()
    call()
    return time.perf_counter() - wall, time.thread_time() - busy


classifier.engine.run_all = timed_run
records = []
for _ in range(rounds + 3):
    whole, busy = measure(lambda: classifier.predict(scan))
    pillow, decoding = measure(decode)
    both, _ = measure(decode_and_resize)
    records.append((whole, inside[0], pillow, both, busy - inside[1] - decoding))
names = ("whole", "engine", "decode", "decode_and_resize", "own")
print(
    json.dumps({name: median(column) * 1e3 for name, column in zip(names, zip(*records[3:], strict=True), strict=True)})
)
