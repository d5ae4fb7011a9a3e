"""Print how many scans of FOLDER Pillow alone decodes and resizes a second, on all cores."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from mri_edge.device.cpu import available_cpus


def prepare(paths):
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))


paths = sorted(entry.path for entry in os.scandir(sys.argv[1]))
cores = available_cpus()
start = time.perf_counter()
with ThreadPoolExecutor(cores) as pool:
    list(pool.map(prepare, [paths[first::cores] for first in range(cores)]))
print(len(paths) / (time.perf_counter() - start))
