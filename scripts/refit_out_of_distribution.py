"""Fit a bundle's out-of-distribution check again, on the features of the artifact that the device runs.

    python scripts/refit_out_of_distribution.py BUNDLE --data DIR        # DIR: the data that it was trained on

Needed after a change of ``train/evaluation/out_of_distribution.py``, for a bundle without its Keras model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mri_edge import Bundle, Classifier
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.train.data.collection import collect
from mri_edge.train.data.folder import find_scans
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.roles import rows_of
from mri_edge.train.evaluation.out_of_distribution import fit_out_of_distribution
from mri_edge.train.loops.distil import recorded_split

BATCH = 32


def main() -> None:
    """Compute features, fit the check, and rewrite the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or name of an embedded model")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    manifest, training = bundle.manifest, bundle.manifest.training
    scans, _ = find_scans(options.data, trained=Labels(manifest.labels, manifest.positive, training.classes))
    split = recorded_split(bundle, scans)
    if split is None:
        raise SystemExit(f"{options.data}: not the images that the split record of {bundle.folder} lists")
    data = collect(scans, manifest.preprocessing, with_slices=False)
    train, held_out, test = rows_of(split, data)
    with Classifier.load(bundle, engine="onnxruntime") as classifier:

        def features(pixels: np.ndarray) -> np.ndarray:
            parts = range(0, len(pixels), BATCH)
            run = classifier.engine.run_outputs
            return np.concatenate([run(pixels[at : at + BATCH], ["features"])["features"] for at in parts])

        fitted = fit_out_of_distribution(features, data.pixels, train, held_out, training.seed, source=data.source)
    with rewrite_bundle(bundle) as writer:
        writer.update(novelty=fitted.entry)
        writer.add_document(fitted.entry.file, fitted.content)
    with Classifier.load(bundle.folder) as classifier:
        predictions = map(classifier.predict, data.pixels[test])
        warned = sum(
            any(warning.code == "unlike_training" for warning in prediction.warnings) for prediction in predictions
        )
    print(f"{bundle.folder.name}: limit {fitted.entry.limit:.3f}; {warned} of {len(test)} test images get a warning")


if __name__ == "__main__":
    main()
