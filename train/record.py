"""A finished training as a bundle: the model, its manifest, its metrics, its split."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mri_edge
import numpy as np
from mri_edge.card import METRICS
from mri_edge.manifest import Artefact, Creation, Manifest, Metric, TensorSpec, Training
from mri_edge.prediction import NOTICE, decide
from mri_edge.split import SPLIT, Split
from mri_edge.writing import new_bundle
from numpy.typing import NDArray

from .data import KNOWN_LABELS, Labels
from .metrics import by_folder, details
from .recipe import Recipe

if TYPE_CHECKING:  # Keras is not needed to write down what it made
    from .backbone import BackboneWeights
    from .fit import Epoch
    from .model import Network
    from .novelty import FittedNovelty

LIBRARIES = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "scikit-learn", "scipy")
LIMITS = (
    "Scanners and patients of the training images are not recorded. Says nothing of other organs, other diseases, what "
    "lies outside the picture, or pictures of another kind than those: it gives such a label all the same."
)


def write_bundle(
    out: Path,
    network: Network,
    *,
    name: str,
    recipe: Recipe,
    seed: int,
    labels: Labels,
    split: Split,
    architecture: str = "VGG16",
    weights: BackboneWeights,
    history: Sequence[Epoch],
    probabilities: NDArray[np.float32],
    metrics: dict[str, Metric],
    overwrite: bool,
    threshold: float | None = None,
    split_name: str = "reference",
    training_details: dict[str, Any] | None = None,
    novelty: FittedNovelty | None = None,
    documents: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write everything at ``out``, whole or not at all. ``probabilities`` are those of the test images, in order.

    ``training_details`` stand in the manifest in place of the recipe's fields; ``documents`` are further files.

    Raises
    ------
    OutputError
        ``out`` is taken or cannot be written.
    """
    test = split.of("test")
    manifest = Manifest(
        name=name,
        version=mri_edge.__version__,
        labels=labels.names,
        positive=labels.positive,
        threshold=threshold,
        preprocessing=recipe.preprocessing,
        artefacts=(),
        creation=creation(),
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
            details=training_details or asdict(recipe),
        ),
        metrics=metrics,
        novelty=novelty.entry if novelty else None,
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
    )
    with new_bundle(out, manifest, overwrite=overwrite) as writer:
        network.whole.save(writer.path("model.keras"))
        writer.add_artefact(keras_artefact(recipe, len(labels.names)))
        writer.add_document(METRICS, measured)
        writer.add_document(SPLIT, split.to_json())
        for file, content in (documents or {}).items():
            writer.add_document(file, content)
        if novelty:
            writer.add_document(novelty.entry.file, novelty.content)
        writer.add_card()


def metrics_document(
    files: Sequence[str],
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    positive: int,
    threshold: float | None,
    metrics: dict[str, Metric],
    history: Sequence[dict[str, Any]],
) -> str:
    """Content of ``metrics.json``: the figures on the test images (N), and what tables and plots are drawn from."""
    right = decide(probabilities, positive, threshold) == truth
    content = {
        "metrics": {key: asdict(metric) for key, metric in metrics.items()},
        **details(truth, probabilities, positive, threshold),
        "folders": by_folder([file.rpartition("/")[0] for file in files], truth, right),
        "test": [
            {"file": file, "label": label, "probabilities": row}
            for file, label, row in zip(files, truth.tolist(), probabilities.tolist(), strict=True)
        ],
        "history": list(history),
    }
    return json.dumps(content, indent=1) + "\n"


def intended_use(labels: Labels) -> str:
    """What the labels say that the model does, and the notice."""
    if labels.names == KNOWN_LABELS:
        return f"Sorts two-dimensional brain-MRI slices into those with and without a visible tumour. {NOTICE}"
    return f"Sorts pictures of the kind that it was trained on by label: {', '.join(labels.names)}. {NOTICE}"


def keras_artefact(recipe: Recipe, classes: int) -> Artefact:
    """The manifest's entry for ``model.keras``, before its size and hash are known."""
    size = (recipe.preprocessing.height, recipe.preprocessing.width, 3)
    return Artefact(
        file="model.keras",
        format="keras",
        precision="float32",
        size_bytes=0,
        sha256="",
        input=TensorSpec("image", "float32", (None, *size)),
        output=TensorSpec("probabilities", "float32", (None, classes)),
    )


def creation() -> Creation:
    """Time, command line, versions and commit of this run."""
    return Creation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # A bundle travels: the folders of the machine that made it stay at home.
        command=shlex.join(["mri-edge", *(Path(one).name if Path(one).is_absolute() else one for one in sys.argv[1:])]),
        code_version=mri_edge.__version__,
        code_commit=_commit(),
        libraries={"python": platform.python_version(), **_versions()},
        platform=f"{platform.system()} {platform.machine()}",
    )


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Commit of this code, if it runs from a checkout of its own; an installed package has none."""
    here = Path(__file__).resolve()
    try:
        for question in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(  # noqa: S603 (our own arguments, no shell)
                ["git", "-C", str(here.parent), *question],  # noqa: S607 (git is where PATH says)
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
