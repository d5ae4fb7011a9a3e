"""Print the cores that may be used, the threads of the engine, and the cores that predicting SCAN keeps busy."""

import sys
import time
from pathlib import Path

from mri_edge import Classifier
from mri_edge.device.cpu import available_cpus

scan = Path(sys.argv[1]).read_bytes()
with Classifier.load(provider="cpu") as classifier:
    classifier.predict(scan)
    wall, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() < wall + 1:
        list(classifier.predict_batches([scan] * 8))
    used = (time.process_time() - busy) / (time.perf_counter() - wall)
    print(available_cpus(), classifier.engine.threads, round(used, 3))
