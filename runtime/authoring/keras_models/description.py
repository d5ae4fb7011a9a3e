"""Check the description of a Keras model: every class in it is a known layer, every function a known activation.

Keras' safe mode refuses Python bytecode, but in several releases it could be bypassed: by modules named in the
description, functions of Keras that write files, layers that load foreign graphs or read word lists from any path. So
this is an allowlist of the parts of image classifiers. Anything else is refused before Keras sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .containers import UnsafeModelError

_LARGEST_COUNT = 50_000  # classes named in one description; EfficientNetB7 names 9,000


def _names(text: str) -> set[str]:
    return set(text.split())


_PLAIN = _names("""
    InputLayer Dense EinsumDense Activation Identity Masking Embedding
    Flatten Reshape Permute RepeatVector
    Add Subtract Multiply Average Maximum Minimum Concatenate Dot
    BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization
    SpectralNormalization TimeDistributed
    Attention AdditiveAttention MultiHeadAttention GroupQueryAttention GroupedQueryAttention
    ReLU LeakyReLU PReLU ELU Softmax
    Dropout AlphaDropout GaussianDropout GaussianNoise ActivityRegularization
    Rescaling Normalization Resizing CenterCrop CategoryEncoding
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom
    RandomHue RandomSaturation RandomShear RandomGrayscale RandomErasing RandomGaussianBlur RandomSharpness
""")
_BY_DIMENSION = _names("""
    Conv{} Conv{}Transpose SeparableConv{} DepthwiseConv{} MaxPooling{} AveragePooling{} GlobalMaxPooling{}
    GlobalAveragePooling{} AdaptiveMaxPooling{} AdaptiveAveragePooling{} UpSampling{} ZeroPadding{} Cropping{}
    SpatialDropout{}
""")
_LAYERS = _PLAIN | {name.format(f"{size}D") for name in _BY_DIMENSION for size in (1, 2, 3)}
_MODELS = {"Functional", "Model", "Sequential"}
_INITIALIZERS = _names("""
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform
    Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
""")
_REGULARIZERS = {"L1", "L2", "L1L2", "OrthogonalRegularizer"}
_CONSTRAINTS = {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}
_POLICIES = {"DTypePolicy", "FloatDTypePolicy"}
_ARRAY_OPERATIONS = _names("""
    Abs Absolute Add Clip Concatenate Divide Exp ExpandDims Flip GetItem Log Matmul Max Maximum Mean Min Minimum
    Moveaxis Multiply Negative Pad Power Prod Ravel Reshape Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Tanh
    Transpose TrueDivide Var
""")
_NETWORK_OPERATIONS = _names("""
    Celu Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid LogSoftmax Normalize Relu Relu6
    Selu Sigmoid Silu Softmax Softplus Softsign TanhShrink
""")
_ACTIVATIONS = _names("""
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
""")
# Plain values that Keras writes as a class.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}

# Module in the description -> known classes of it. None: files of Keras 2 and .h5 name no module.
_CLASSES = {
    "keras.layers": _LAYERS,
    "keras.models": _MODELS,
    "keras.src.models.functional": _MODELS,
    "keras.src.models.sequential": _MODELS,
    "keras": _MODELS | _POLICIES,
    "keras.initializers": _INITIALIZERS,
    "keras.regularizers": _REGULARIZERS,
    "keras.constraints": _CONSTRAINTS,
    "keras.dtype_policies": _POLICIES,
    "keras.src.ops.numpy": _ARRAY_OPERATIONS,
    "keras.src.ops.nn": _NETWORK_OPERATIONS,
    "keras.src.applications.convnext": {"LayerScale"},
    None: _LAYERS | _MODELS | _INITIALIZERS | _REGULARIZERS | _CONSTRAINTS | _POLICIES | _VALUES,
}


def check_description(config: Any) -> None:
    """Check the description of a model, parsed from JSON.

    Raises
    ------
    UnsafeModelError
        It names a class or function that is not known to be harmless.
    """
    for count, item in enumerate(_objects_with_class(config)):
        if count >= _LARGEST_COUNT:
            raise UnsafeModelError(f"its description names more than {_LARGEST_COUNT:,} layers and parts")
        _check(item)


def _objects_with_class(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a description that names a class."""
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "class_name" in item:
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _check(item: dict[str, Any]) -> None:
    name, module, registered = item["class_name"], item.get("module"), item.get("registered_name")
    if name == "function":
        function = item.get("config")
        if module not in ("builtins", "keras.activations") or not isinstance(function, str):
            raise UnsafeModelError(f"it names a function of {module!r}: {function!r}")
        if function not in _ACTIVATIONS or registered not in (None, function):
            raise UnsafeModelError(f"it names the function {registered or function!r}, which is not an activation")
        return
    known = isinstance(name, str) and (module is None or isinstance(module, str)) and name in _CLASSES.get(module, ())
    if known and registered in (None, name):
        return
    if name in ("Lambda", "__lambda__"):
        raise UnsafeModelError("it holds a Lambda layer, which is code")
    place = f" of {module!r}" if module is not None else ""
    alias = f" registered as {registered!r}" if registered not in (None, name) else ""
    raise UnsafeModelError(f"it holds {name!r}{place}{alias}, which is not a layer that is known to be harmless")
