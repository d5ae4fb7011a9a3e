"""Print the median seconds of one run of an artifact in this process. Arguments: PATH BATCH THREADS [ENGINE]."""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from mri_edge.engines import open_engine

path, batch, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
engine = open_engine(path, engine=next(iter(sys.argv[4:]), None), provider="cpu", threads=threads)
pixels = np.random.default_rng(0).integers(0, 256, (batch, *engine.input.shape[1:]), np.uint8)
engine.run(pixels)
seconds = []
until = time.perf_counter() + 1.5
while time.perf_counter() < until or len(seconds) < 3:
    start = time.perf_counter()
    engine.run(pixels)
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds))
