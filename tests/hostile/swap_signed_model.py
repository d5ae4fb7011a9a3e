"""Exchange a signed model at every step of loading, and check that only the signed model runs.

``python swap_signed_model.py FOLDER KEY EVIL``: FOLDER is a signed bundle with one artifact, KEY the public key, EVIL a
model of the same size. The bundle is loaded once for each call of a function that opens, reads, measures or hashes a
file, or hands a model to an engine's library. Right before and right after that call EVIL takes the model's place.
Prints one JSON object: how many steps there were, what ran (``signed``, ``evil``) and what was refused.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from time import sleep
from types import FrameType
from typing import Any

from mri_edge import Classifier
from mri_edge.benchmarking.trial import noise
from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import BundleError

STEPS = {"open", "read", "readall", "stat", "fstat", "update", "hexdigest", "openssl_sha256", "InferenceSession"}


class Swap:
    """Puts the evil model in place at one step, given by its number."""

    def __init__(self, model: Path, evil: Path, at: int) -> None:
        self.model, self.evil, self.at = model, evil, at
        self.steps = 0
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == "_import_library":
            sleep(0.02)  # a cold start imports the engine's library here, which takes longer than a hash
        if event in ("c_call", "c_return") and getattr(argument, "__name__", "") in STEPS:
            with self._lock:
                self.steps += 1
                now = self.steps == self.at
            if now:
                os.replace(self.evil, self.model)


def load(folder: Path, key: Path, at: int, evil: Path, engine: str) -> tuple[str, int]:
    """Load once with the exchange at step ``at``. Returns which model ran, and the number of steps."""
    [model] = (folder / artifact.file for artifact in Bundle.open(folder).manifest.artifacts)
    good, copy = model.read_bytes(), evil.with_name("copy")
    shutil.copyfile(evil, copy)
    swap = Swap(model, copy, at)
    threading.setprofile(swap)
    sys.setprofile(swap)
    try:
        with Classifier.load(Bundle.open(folder, signed_by=key), engine=engine, threads=1) as classifier:
            sys.setprofile(None)
            outcome = json.dumps(classifier.engine.run(noise(classifier.engine.input, 1)).round(4).tolist())
    except BundleError:
        outcome = "refused"
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        model.write_bytes(good)
    return outcome, swap.steps


def main(folder: Path, key: Path, evil: Path, engine: str) -> None:
    """Try every step, and print which model ran."""
    load(folder, key, 0, evil, engine)  # otherwise imports by Python would count as steps
    signed, steps = load(folder, key, 0, evil, engine)
    outcomes = Counter(load(folder, key, at, evil, engine)[0] for at in range(1, steps + 1))
    refused = outcomes.pop("refused", 0)
    right = outcomes.pop(signed, 0)
    print(json.dumps({"steps": steps, "signed": right, "refused": refused, "evil": sum(outcomes.values())}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4] if len(sys.argv) > 4 else "onnxruntime")
