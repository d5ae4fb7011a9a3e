"""Fit a bundle's novelty check anew, on the features of the very artefact that the device runs.

For a bundle whose Keras model stayed at home, after a change of ``train/evaluation/out_of_distribution.py``:
``python scripts/refit_novelty.py BUNDLE --data DIR``, with the data that it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mri_edge import Bundle, Classifier
from mri_edge.authoring.writer import rewriting
from mri_edge.train.data.collection import collect
from mri_edge.train.data.folder import find_scans
from mri_edge.train.data.roles import choose_roles, rows_of
from mri_edge.train.evaluation.out_of_distribution import fit_novelty

AT_ONCE = 32


def main() -> None:
    """Measure, fit, and rewrite the bundle whole."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", help="folder, or name of an embedded model")
    options.add_argument("--data", type=Path, required=True)
    chosen = options.parse_args()
    bundle = Bundle.open(chosen.bundle)
    training = bundle.manifest.training
    scans, _ = find_scans(chosen.data)
    data = collect(scans, bundle.manifest.preprocessing)
    split = choose_roles(data)
    if split.split_fingerprint != training.split_fingerprint:
        raise SystemExit(f"{chosen.data}: not the images, or not the split, that {bundle.folder} was trained on")
    train, held_out, test = rows_of(split, data)
    with Classifier.load(bundle, engine="onnxruntime") as classifier:

        def features(pixels: np.ndarray) -> np.ndarray:
            parts = range(0, len(pixels), AT_ONCE)
            return np.concatenate([classifier.engine.run_all(pixels[at : at + AT_ONCE])["features"] for at in parts])

        fitted = fit_novelty(features, data.pixels, train, held_out, training.seed, source=data.source)
    with rewriting(bundle) as writer:
        writer.update(novelty=fitted.entry)
        writer.add_document(fitted.entry.file, fitted.content)
    with Classifier.load(bundle.folder) as classifier:
        predictions = map(classifier.predict, data.pixels[test])
        doubted = sum(any(one.code == "unlike_training" for one in prediction.warnings) for prediction in predictions)
    print(f"{bundle.folder.name}: limit {fitted.entry.limit:.3f}; {doubted} of {len(test)} test images are doubted")


if __name__ == "__main__":
    main()
