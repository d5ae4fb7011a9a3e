"""Define the data that a recipe consists of, which determine a training completely."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mri_edge.scans.preprocessing import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random affine transforms, in the units of Keras' ``ImageDataGenerator``.

    Attributes
    ----------
    rotation
        Degrees, in both directions.
    height_shift, width_shift
        Fraction of the image size, in both directions.
    shear
        Degrees, in both directions. The reference uses 0.2, which is hardly any shear.
    zoom
        Factor from ``1 - zoom`` to ``1 + zoom``, drawn for each axis.
    horizontal_flip
        Mirror half of the images.
    """

    rotation: float = 0.0
    height_shift: float = 0.0
    width_shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    horizontal_flip: bool = False


Range = tuple[float, float]


@dataclass(frozen=True)
class ScanViews:
    """Random views of a scan at its own size: framing, gray levels and image quality.

    Fields that end in ``_probability`` are the probability of a transform, ranges are ``(low, high)``. See
    ``transforms/mri.py`` for what each transform does, and ``data/sampling.py`` for ``source_exponent``.
    """

    source_exponent: float = 0.5
    head_crop_probability: float = 0.5  # crop to the head instead of the whole picture
    head_margin: Range = (-0.04, 0.30)  # margin at each side as a fraction of the box; negative crops it
    picture_margin: Range = (-0.15, 0.15)
    squash_probability: float = 0.4  # change the aspect ratio of a view that frames the head
    squash: Range = (0.85, 1.18)
    flip_probability: float = 0.5
    rotation_probability: float = 0.6
    rotation: float = 25.0  # degrees, in both directions
    # Views that keep the gray levels of the file, as most scans that a device receives do.
    untouched_probability: float = 0.3
    histogram_probability: float = 0.35  # match the gray levels of another slice
    coil_probability: float = 0.3
    coil_strength: Range = (0.05, 0.3)
    window_probability: float = 0.8
    black_level: Range = (-0.02, 0.08)  # as a fraction of the picture's bright end
    white_level: Range = (0.75, 1.25)
    log_gamma: float = 0.5  # of the gamma, in both directions
    contrast: Range = (0.45, 1.05)
    filter_probability: float = 0.0  # filter with a random network of convolutions
    focus_probability: float = 0.35  # blur, lose resolution or sharpen
    noise_probability: float = 0.3
    noise: Range = (1.0, 8.0)  # standard deviation in gray levels
    jpeg_probability: float = 0.3
    jpeg_quality: tuple[int, int] = (25, 90)  # the upper end is excluded
    writing_probability: float = 0.15  # draw bright strokes near an edge
    # Tumor views that are healthy slices with a drawn lesion; only used with two classes.
    lesion_probability: float = 0.3


@dataclass(frozen=True)
class Head:
    """The layers on top of the backbone: ``hidden`` units with ReLU (0 for no such layer), ``dropout``, softmax.

    They get every position of the feature map, or with ``pooled`` the mean of each channel.
    """

    hidden: int
    dropout: float
    pooled: bool = False


@dataclass(frozen=True)
class Schedule:
    """Number of epochs, images per batch, and learning rate of a training."""

    epochs: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class HeadTraining(Schedule):
    """Train the head on a frozen backbone with Adam; every epoch shows each training image once."""


@dataclass(frozen=True)
class FineTuning(Schedule):
    """Warm up the head, then fine-tune it together with the upper stages of the backbone with AdamW.

    Attributes
    ----------
    epoch_images
        Images per epoch, balanced over classes and sources.
    frozen_stages
        Number of stages of the backbone, from the input, that keep their weights.
    warmup_steps, warmup_rate
        Steps of Adam for the head alone, and their learning rate, so that a random head does not damage the backbone.
    rise
        Steps in which the learning rate rises to ``learning_rate``. Then it falls along half a cosine to 2% of that.
    weight_decay, largest_gradient, averaging
        Decay of AdamW, norm to which gradients are clipped, and momentum of the running mean of the weights, which is
        the result.
    label_smoothing
        Fraction of the target probability that is spread evenly over all classes.
    initial_share
        Share of the backbone's initial weights in the result, next to the fine-tuned ones: "WiSE-FT" (Wortsman et al.
        2022, arXiv 2109.01903). Features from before the fine-tuning depend less on the sources.
    """

    epoch_images: int
    frozen_stages: int
    warmup_steps: int
    warmup_rate: float
    rise: int
    weight_decay: float
    largest_gradient: float
    averaging: float
    label_smoothing: float
    initial_share: float = 0.0

    @property
    def steps(self) -> int:
        """Steps after the warm-up."""
        return self.epochs * self.epoch_images // self.batch

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return self.epoch_images // self.batch


@dataclass(frozen=True)
class Distillation(Schedule):
    """Learn the answers of a teacher on a fixed pool of random views, with AdamW.

    Attributes
    ----------
    teacher
        Name of the recipe that trains the teachers of a cross-validation.
    pool_views
        Views in the pool; every epoch shows each of them once.
    rise, weight_decay
        As for ``FineTuning``, except that the learning rate falls to 0.
    temperature
        Divides the logits of the teacher, so that its answers also say how close the other classes are.
    students
        Number of students, with consecutive seeds, that a cross-validation trains in each fold.
    """

    teacher: str
    pool_views: int
    rise: int
    weight_decay: float
    temperature: float
    students: int


@dataclass(frozen=True)
class SplitPolicy:
    """Which images test and which validate.

    Attributes
    ----------
    names
        Values of ``--split`` that the recipe accepts.
    test_fraction, seed
        scikit-learn's ``test_size`` and ``random_state``.
    keep_apart
        Exclude near-duplicates of test images from training, use the reference's test images if its data set is one of
        the sources, and hold out whole groups, separately for each class folder.
    validation_folds
        Hold out one in this many folds for calibration; 0 holds out none.
    """

    names: tuple[str, ...]
    test_fraction: float = 0.2
    seed: int = 42
    keep_apart: bool = False
    validation_folds: int = 0


@dataclass(frozen=True)
class Calibration:
    """Fit a temperature on validation images and choose the threshold that reaches ``target_sensitivity``."""

    target_sensitivity: float = 0.95
    threshold_rule: str = "best Youden index on validation among those of the target sensitivity"


@dataclass(frozen=True)
class RecipeSpec:
    """Everything that determines a training.

    Attributes
    ----------
    name, summary
        The value of ``--recipe``, and its description in the help.
    run_name
        Folder below ``runs/`` for bundles without ``--out``.
    backbone
        Name in ``models.registry``.
    transforms
        The type chooses how training images vary: ``Augmentation`` transforms the network's input, ``ScanViews`` draws
        views from the scan at its own size.
    schedule
        The type chooses the training loop.
    calibration
        ``None`` means no threshold: the most probable class is the answer.
    stress_tests
        Whether a cross-validation also scores scans with changed framing, gray levels and image quality.
    """

    name: str
    summary: str
    run_name: str
    backbone: str
    preprocessing: Preprocessing
    head: Head
    transforms: Augmentation | ScanViews
    schedule: HeadTraining | FineTuning | Distillation
    split: SplitPolicy = field(default_factory=lambda: SplitPolicy(("reference", "stratified", "grouped")))
    calibration: Calibration | None = None
    stress_tests: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether a training learns from trained bundles (``--teacher``)."""
        return isinstance(self.schedule, Distillation)

    @property
    def needs_slices(self) -> bool:
        """Whether a training draws views from the scans at their own size."""
        return isinstance(self.transforms, ScanViews)

    @property
    def augmentation(self) -> Augmentation:
        """The affine transforms of a head training. Raises TypeError if the recipe has views of scans instead."""
        if not isinstance(self.transforms, Augmentation):
            raise TypeError(f"recipe {self.name!r} trains on transformed inputs: its transforms must be Augmentation")
        return self.transforms

    @property
    def scan_views(self) -> ScanViews:
        """The views of scans to train on. Raises TypeError if the recipe transforms the network's input instead."""
        if not isinstance(self.transforms, ScanViews):
            raise TypeError(f"recipe {self.name!r} trains on views of the scans: its transforms must be ScanViews")
        return self.transforms

    def with_epochs(self, epochs: int) -> RecipeSpec:
        """Return the same recipe, trained for ``epochs``."""
        return replace(self, schedule=replace(self.schedule, epochs=epochs))
