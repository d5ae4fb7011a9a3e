"""``--recipe robust``: the reference's network, fine-tuned to hold on slices from elsewhere.

What differs from the reference: the normalisation that the ImageNet weights were trained with, a first
layer that sees grey alone, blocks 3 to 5 fine-tuned, classes and sources in balance, framing, grey
levels and picture quality drawn anew for every picture, weights averaged over the last steps,
probabilities calibrated and a threshold chosen on slices held out by group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.split import Role, Split, SplitImage
from mri_edge.errors import OutputError
from mri_edge.scans.frame import Pixels
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data import duplicates, folds
from mri_edge.train.data.folder import Decoded, Labels, Scan, decode, pixel_bytes
from mri_edge.train.data.splits import choose_test
from mri_edge.train.evaluation import calibration
from mri_edge.train.loops.finetune import Batch, Plan, fast_precision, finetune
from mri_edge.train.loops.keras import load_keras
from mri_edge.train.models.vgg16 import Network, build_network, predict
from mri_edge.train.models.weights import BackboneWeights, build_backbone
from mri_edge.train.transforms import mri
from mri_edge.train.transforms.lesions import draw_lesion

from . import published
from .base import REFERENCE, Recipe

Indices = NDArray[np.intp]
Report = Callable[[int, int, float], None]

EPOCH_IMAGES = 2048  # an epoch: draws after which every image has had its share
LABEL_SMOOTHING = 0.05
LESION_SHARE = 0.3  # of the tumour views: healthy slices with a drawn lesion
THRESHOLD_RULE = "best Youden index on validation among those of the target sensitivity"
VALIDATION_FOLDS = 8  # one of them is held out for temperature and threshold
_LARGEST_SLICE = 512 * 512  # bytes at its own size of the largest that public sets hold many of


@dataclass(frozen=True)
class Collection:
    """The slices of a data folder as the recipe sees them; arrays have one entry a scan.

    ``slices`` are at their own size, ``pixels`` uint8 (N, height, width, 3) RGB at the network's;
    ``source`` is the folder above the class folders, ``group`` the near-duplicate group.
    """

    scans: Sequence[Scan]
    slices: list[mri.Slice]
    pixels: NDArray[np.uint8]
    label: Indices
    source: NDArray[np.str_]
    group: Indices
    hashes: duplicates.Hashes


@dataclass(frozen=True)
class Trained:
    """A finished model with the temperature built in, and how it came to be.

    ``network`` computes in float32 and is what ships; ``quick`` has the same weights in the precision
    of the training.
    """

    network: Network
    quick: Network
    temperature: float
    threshold: float
    details: dict[str, Any]


def plan_of(recipe: Recipe) -> Plan:
    """The recipe's epochs and learning rate as steps of fine-tuning."""
    return Plan(
        frozen_blocks=2,
        warm_steps=60,
        warm_rate=1e-3,
        steps=recipe.epochs * EPOCH_IMAGES // recipe.batch,
        rate=recipe.learning_rate,
        rise=50,
        weight_decay=1e-4,
        largest_gradient=1.0,
        averaging=0.99,
    )


def epoch_steps(recipe: Recipe) -> int:
    """Steps of an epoch."""
    return EPOCH_IMAGES // recipe.batch


def collect(
    scans: Sequence[Scan],
    preprocessing: Preprocessing,
    *,
    patients: Sequence[str] | None = None,
    store: Path | None = None,
) -> Collection:
    """Decode every scan once.

    Parameters
    ----------
    patients
        Whose each scan is: those of one patient are in one group, beside near-duplicates.
    store
        Folder that will hold all pixels, which are mapped from there; ``None`` holds them in memory.

    Raises
    ------
    DataError
        Scans that cannot be read; all are named.
    """

    if store is None:
        slices: dict[int, mri.Slice] = {}

        def keep(index: int, picture: Pixels) -> None:
            slices[index] = mri.Slice.from_pixels(picture)

        decoded = decode(scans, preprocessing, None, keep)
    else:
        decoded, slices = _on_disk(scans, preprocessing, store)
    return Collection(
        scans=scans,
        slices=[slices[index] for index in range(len(scans))],
        pixels=decoded.pixels,
        label=np.array([scan.label for scan in scans]),
        source=np.array([scan.source for scan in scans]),
        group=duplicates.groups(decoded.hashes, patients=patients),
        hashes=decoded.hashes,
    )


def store_bytes(scans: Sequence[Scan], preprocessing: Preprocessing) -> int:
    """Bytes that ``collect`` writes to its store, at most, for scans of the usual sizes."""
    return pixel_bytes(scans, preprocessing) + len(scans) * _LARGEST_SLICE


def _on_disk(scans: Sequence[Scan], preprocessing: Preprocessing, store: Path) -> tuple[Decoded, dict[int, mri.Slice]]:
    """Decode, and put the slices one behind the other into a file that is mapped afterwards."""
    places: dict[int, tuple[int, tuple[int, ...], tuple[int, int, int, int]]] = {}
    lock = Lock()
    try:
        with open(store / "slices", "w+b") as file:

            def keep(index: int, picture: Pixels) -> None:
                one = mri.Slice.from_pixels(picture)
                with lock:
                    places[index] = file.tell(), one.grey.shape, one.head
                    file.write(one.grey.tobytes())

            decoded = decode(scans, preprocessing, store / "pixels.npy", keep)
            file.flush()
            mapped = np.asarray(np.memmap(file, np.uint8, "r"))
    except OSError as error:
        raise OutputError(f"{store}: cannot write ({error.strerror})", "Make room, or name another folder") from error
    return decoded, {
        index: mri.Slice(mapped[start : start + height * width].reshape(height, width), head)
        for index, (start, (height, width), head) in places.items()
    }


def choose_roles(data: Collection, split: str = "reference", left_out: Sequence[Scan] = ()) -> Split:
    """Who tests, validates and trains.

    Tests: with ``"reference"`` the reference's own test images where its data set, whole and with nothing added, is
    one of the sources; otherwise, and with ``"grouped"``, a fifth of the groups. Slices close to a test image are
    left out altogether, as is ``left_out``. Of the others one group in eight validates, in every class folder alike.

    Raises
    ------
    DataError
        Too few groups of slices in a class folder to hold any out.
    """
    test = _reference_test(data) if split == "reference" else None
    if test is None:
        test = np.asarray(hold_out(data, np.arange(len(data.scans)), 5))
    kept_apart = near(data, test)
    role: list[Role] = ["train"] * len(data.scans)
    for index in np.flatnonzero(kept_apart):
        role[index] = "excluded"
    for index in test:
        role[index] = "test"
    usable = np.flatnonzero(~kept_apart)
    for index in usable[hold_out(data, usable)]:
        role[index] = "validation"
    role += ["excluded"] * len(left_out)
    everyone = zip([*data.scans, *left_out], role, strict=True)
    return Split(tuple(SplitImage(scan.file, scan.sha256, scan.label, one) for scan, one in everyone))


def may_train(data: Collection) -> NDArray[np.bool_]:
    """bool (N,): False for the reference's test images, where they are in the data, and all that is ``near`` them."""
    test = _reference_test(data)
    return np.ones(len(data.scans), bool) if test is None else ~near(data, test)


def near(data: Collection, chosen: Indices) -> NDArray[np.bool_]:
    """True for the chosen images, all in one group with one of them, and all within ``KEEP_APART_BITS`` of one."""
    mask = np.isin(data.group, data.group[chosen])
    for first, second in duplicates.close_pairs(data.hashes, duplicates.KEEP_APART_BITS):
        if first in chosen or second in chosen:
            mask[[first, second]] = True
    return mask


def hold_out(data: Collection, among: Indices, parts: int = VALIDATION_FOLDS) -> Indices:
    """Positions in ``among`` of one of so many parts, as ``grouped_folds`` makes them."""
    return grouped_folds(data, among, parts)[0]


def grouped_folds(data: Collection, among: Indices, parts: int) -> list[Indices]:
    """Positions in ``among`` that each fold holds out: whole groups, every class folder in its share.

    Raises DataError if there are too few groups.
    """
    folder = np.array([data.scans[index].folder for index in among])
    return folds.by_group(folder, data.group[among], parts)


def _reference_test(data: Collection) -> Indices | None:
    """The test images of the source that holds the reference's data set, or None where there is none."""
    for source in np.unique(data.source):
        members = np.flatnonzero(data.source == source)
        if fingerprint(data.scans[index].sha256 for index in members) == published.DATA:
            test = choose_test(
                "reference",
                data.label[members],
                data.group[members],
                test_share=REFERENCE.test_share,
                seed=REFERENCE.split_seed,
            )
            return np.asarray(members[test])
    return None


def train_robust(
    data: Collection,
    train: Indices,
    validation: Indices,
    weights: BackboneWeights | None,
    recipe: Recipe,
    plan: Plan,
    *,
    labels: Labels,
    seed: int,
    report: Report = lambda done, total, loss: None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train on ``train``, calibrate on ``validation``; no other image is looked at.

    Parameters
    ----------
    weights
        Of the backbone; ``None`` draws them, which serves tests alone.
    report
        Called after each step with steps done, steps in all, and the loss.
    checkpoint
        File that holds the state of the fine-tuning after each epoch; if it is there, training goes on from it.
    """
    classes, positive = len(labels.names), labels.positive
    precision = fast_precision()
    working = _network(weights, recipe, classes, seed, precision)
    views_of = view_maker(data, train, recipe, plan.warm_steps + plan.steps, labels=labels, seed=seed)

    def make_batch(step: int) -> Batch:
        views, label = views_of(step)
        targets = np.full((len(label), classes), LABEL_SMOOTHING / classes, np.float32)
        targets[np.arange(len(label)), label] += 1 - LABEL_SMOOTHING
        return recipe.preprocessing.normalise(views[..., None].repeat(3, axis=-1)), targets

    losses = finetune(
        working.whole,
        working.backbone,
        plan,
        make_batch,
        report,
        checkpoint=checkpoint,
        every=epoch_steps(recipe),
    )
    # The same weights in a network that computes in float32: what is kept and exported.
    network = _network(None, recipe, classes, seed, "float32")
    network.whole.set_weights(working.whole.get_weights())

    temperature, threshold = calibrate(network, data, validation, recipe.preprocessing, positive)
    working.whole.set_weights(network.whole.get_weights())
    return Trained(
        network,
        working,
        temperature,
        threshold,
        {
            "architecture": {"hidden": recipe.hidden, "dropout": recipe.dropout},
            "plan": dataclasses.asdict(plan),
            "precision": precision,
            "batch": recipe.batch,
            "label_smoothing": LABEL_SMOOTHING,
            "drawn_lesion_share": LESION_SHARE if classes == 2 else 0,
            "loss_by_epoch": _means(losses, epoch_steps(recipe)),
            "temperature": temperature,
            "threshold_rule": THRESHOLD_RULE,
            "target_sensitivity": calibration.TARGET_SENSITIVITY,
            "validation_images": len(validation),
        },
    )


def calibrate(
    network: Network, data: Collection, validation: Indices, preprocessing: Preprocessing, positive: int
) -> tuple[float, float]:
    """Build the temperature that fits ``validation`` best into ``network``; it, and the threshold for that."""
    held_out = predict(network.whole, data.pixels, preprocessing, rows=validation)
    temperature = calibration.fit_temperature(held_out, data.label[validation])
    calibration.build_in_temperature(network.whole, temperature)
    scores = calibration.scale_probabilities(held_out, temperature)[:, positive]
    return temperature, calibration.choose_threshold(scores, (data.label[validation] == positive).astype(int))


def view_maker(
    data: Collection, train: Indices, recipe: Recipe, steps: int, *, labels: Labels, seed: int
) -> Callable[[int], tuple[NDArray[np.uint8], Indices]]:
    """Random views of the images ``train``, classes and sources in balance.

    Returns
    -------
    A function of the step, 0 to ``steps`` - 1, that gives ``recipe.batch`` grey views uint8 (N, height, width) and
    their label indices (N,). It depends on the step and the seed alone.
    """
    order = train[
        balanced_draws(data.label[train], data.source[train], steps * recipe.batch, np.random.default_rng([seed, 0]))
    ]
    healthy_order = order[data.label[order] != labels.positive]

    def views_of(step: int) -> tuple[NDArray[np.uint8], Indices]:
        rng = np.random.default_rng([seed, 1, step])
        chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
        views = []
        for index in chosen:
            # With more than one kind of tumour a drawn lesion has no label.
            drawn = len(labels.names) == 2 and data.label[index] == labels.positive and rng.random() < LESION_SHARE
            views.append(
                mri.augment(
                    rng,
                    data.slices[rng.choice(healthy_order) if drawn else index],
                    data.slices[rng.choice(train)].grey,
                    recipe.preprocessing,
                    draw_lesion if drawn else None,
                )
            )
        return np.stack(views), data.label[chosen]

    return views_of


def balanced_draws(label: Indices, source: NDArray[np.str_], count: int, rng: np.random.Generator) -> Indices:
    """Which images to show, in order: positions (count,).

    Every class is shown equally often, and every class draws its sources in the same shares, so that
    knowing the source tells nothing of the label. A source's share grows with the square root of the
    size of its rarer class: a small one is heard, and not learned by heart. In each round of 2,048 an
    image comes up as often as its share says, to within one (systematic sampling).
    """
    share = {one: min(np.unique(label[source == one], return_counts=True)[1]) ** 0.5 for one in np.unique(source)}
    weight = np.zeros(len(label))
    for one, of_class in {(s, c) for s, c in zip(source.tolist(), label.tolist(), strict=True)}:
        cell = (source == one) & (label == of_class)
        weight[cell] = share[one] / cell.sum()
    for of_class in np.unique(label):
        weight[label == of_class] /= weight[label == of_class].sum()
    drawn: list[Indices] = []
    for start in range(0, count, EPOCH_IMAGES):
        turn = rng.permutation(len(label))
        reach = np.cumsum(weight[turn])
        points = (np.arange(EPOCH_IMAGES) + rng.random()) / EPOCH_IMAGES * reach[-1]
        one_round = turn[np.minimum(np.searchsorted(reach, points), len(turn) - 1)]
        drawn.append(rng.permutation(one_round)[: count - start])
    return np.concatenate(drawn)


def see_grey_alone(backbone: Any, preprocessing: Preprocessing) -> None:
    """Change the first convolution so that colour cannot matter: it answers to the mean of the channels.

    Grey pictures give what they gave before (but for a constant in the outermost pixels, where zero
    padding stands in for a normalised value); a tinted picture gives what its grey twin gives.
    """
    first = backbone.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    mean, deviation = (np.asarray(v, np.float32)[:, None] for v in (preprocessing.mean, preprocessing.deviation))
    grey = (kernel / deviation).mean(axis=2, keepdims=True)
    shift = (kernel * (mean.mean() - mean) / deviation).sum(axis=(0, 1, 2))
    first.set_weights([grey * deviation, bias + shift])


def _network(weights: BackboneWeights | None, recipe: Recipe, classes: int, seed: int, precision: str) -> Network:
    keras = load_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        keras.utils.set_random_seed(seed)
        backbone = build_backbone(weights, recipe.preprocessing.height, recipe.preprocessing.width)
        see_grey_alone(backbone, recipe.preprocessing)
        return build_network(backbone, recipe, classes, seed)
    finally:
        keras.config.set_dtype_policy(before)


def _means(losses: Sequence[float], steps: int) -> list[float]:
    return [float(np.mean(losses[start : start + steps])) for start in range(0, len(losses), steps)]
