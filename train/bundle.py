"""Write a finished training as a bundle: the model, its manifest, its metrics, its split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import mri_edge
from mri_edge.authoring.card import METRICS
from mri_edge.authoring.labels import KNOWN_LABELS
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.writer import KERAS, new_bundle
from mri_edge.bundles.manifest import Manifest, Metric, Training
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.inference.prediction import NOTICE, decide
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.metrics import by_folder, by_label, details
from mri_edge.train.recipes.base import RecipeSpec

if TYPE_CHECKING:  # writing the bundle does not need Keras
    from mri_edge.train.evaluation.out_of_distribution import FittedOutOfDistribution
    from mri_edge.train.loops.head import Epoch
    from mri_edge.train.models.network import Network
    from mri_edge.train.models.weights import BackboneWeights

LIMITS = (
    "Scanners and patients of the training images are not recorded. The model always answers with one of its labels, "
    "also for other organs, other diseases, findings outside the picture, and other kinds of pictures."
)


def write_bundle(
    out: Path,
    network: Network,
    *,
    name: str,
    recipe: RecipeSpec,
    seed: int,
    labels: Labels,
    split: Split,
    architecture: str = "VGG16",
    weights: BackboneWeights,
    history: Sequence[Epoch],
    probabilities: NDArray[np.float32],
    metrics: dict[str, Metric],
    overwrite: bool,
    training_details: dict[str, Any],
    threshold: float | None = None,
    split_name: str = "reference",
    out_of_distribution: FittedOutOfDistribution | None = None,
    documents: Mapping[str, str | bytes] | None = None,
    group: NDArray[np.intp] | None = None,
) -> None:
    """Write a bundle at ``out``, completely or not at all.

    Parameters
    ----------
    probabilities
        float32 (N, classes) of the test images, in the order of the split.
    training_details
        Recorded about the training in the manifest, in plain types.
    documents
        Content of additional files, by their path in the bundle.
    group
        int (N,) of the test images, as ``metrics.measure`` takes it.

    Raises
    ------
    OutputError
        ``out`` exists or cannot be written.
    """
    test = split.of("test")
    manifest = Manifest(
        name=name,
        version=mri_edge.__version__,
        labels=labels.names,
        positive=labels.positive,
        threshold=threshold,
        preprocessing=recipe.preprocessing,
        artifacts=(),
        creation=current_provenance(),
        training=Training(
            recipe=recipe.name,
            seed=seed,
            backbone=architecture,
            backbone_weights=weights.source,
            backbone_sha256=weights.sha256,
            data_fingerprint=split.data_fingerprint,
            split=split_name,
            split_fingerprint=split.split_fingerprint,
            train_images=len(split.of("train")),
            test_images=len(test),
            classes=labels.folders,
            details=training_details,
        ),
        metrics=metrics,
        novelty=out_of_distribution.entry if out_of_distribution else None,
        intended_use=intended_use(labels),
        limits=LIMITS,
        licences={
            "code": "MIT",
            "backbone weights": weights.licence,
            "training data": "as the owner of the data says",
        },
    )
    measured = metrics_document(
        [image.file for image in test],
        np.array([image.label for image in test]),
        probabilities,
        labels.positive,
        threshold,
        metrics,
        [asdict(epoch) for epoch in history],
        names=labels.names,
        group=group,
    )
    with new_bundle(out, manifest, overwrite=overwrite) as writer:
        network.whole.save(writer.path(KERAS))
        writer.add_keras_model()
        writer.add_document(METRICS, measured)
        writer.add_document(SPLIT, split.to_json())
        for file, content in (documents or {}).items():
            writer.add_document(file, content)
        if out_of_distribution:
            writer.add_document(out_of_distribution.entry.file, out_of_distribution.content)
        writer.add_card()


def metrics_document(
    files: Sequence[str],
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    positive: int | None,
    threshold: float | None,
    metrics: dict[str, Metric],
    history: Sequence[dict[str, Any]],
    *,
    names: Sequence[str],
    group: NDArray[np.intp] | None = None,
) -> str:
    """Return the content of ``metrics.json``: metrics on the test images (N,), and the data of tables and plots.

    With two labels, the report has label indices as row names, as in existing bundles; with more it has label names,
    and the metrics of each label are added. ``group`` is as ``metrics.measure`` takes it.
    """
    called = decide(probabilities, positive, threshold)
    several = len(names) > 2
    test: list[dict[str, Any]] = [
        {"file": file, "label": label, "probabilities": row}
        for file, label, row in zip(files, truth.tolist(), probabilities.tolist(), strict=True)
    ]
    for image, number in zip(test, [] if group is None else group.tolist(), strict=False):
        image["group"] = number  # so that the metrics can be computed again at another threshold
    content = {
        "metrics": {key: asdict(metric) for key, metric in metrics.items()},
        **details(truth, probabilities, positive, threshold, names=names if several else None),
        **({"by_label": by_label(truth, probabilities, called, names, group)} if several else {}),
        "folders": by_folder([file.rpartition("/")[0] for file in files], truth, called == truth, group),
        "test": test,
        "history": list(history),
    }
    return json.dumps(content, indent=1) + "\n"


def intended_use(labels: Labels) -> str:
    """Describe what a model with these labels is for, followed by the notice."""
    if labels.names == KNOWN_LABELS:
        return f"Sorts two-dimensional brain-MRI slices into those with and without a visible tumour. {NOTICE}"
    return f"Sorts pictures of the kind that it was trained on by label: {', '.join(labels.names)}. {NOTICE}"
