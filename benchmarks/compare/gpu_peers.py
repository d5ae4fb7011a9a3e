"""VGG16 in other libraries on the GPU, for its time alone: the weights are random.

Each function returns a function from uint8 (N, H, W, 3) RGB to float32 probabilities (N, classes), as in ``peers``. It
raises RuntimeError if its library finds no GPU, and ImportError if it is not installed.
"""

from __future__ import annotations

_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
_CLASSES = 2


def torch_vgg16(height, width):
    """Convolve in TF32, as PyTorch does by default."""
    import torch
    from torch import nn

    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU")
    layers, channels = [], 3
    for size in _WIDTHS:
        if size == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
            channels = size
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _CLASSES), nn.Softmax(1)]
    network = nn.Sequential(*layers).cuda().eval()

    def run(batch):
        with torch.inference_mode():
            return network(torch.from_numpy(batch).cuda().permute(0, 3, 1, 2).float() / 255).cpu().numpy()

    return run


def keras_vgg16(height, width):
    """Run the compiled graph on one batch, without the loop of ``predict``."""
    import keras
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise RuntimeError("tensorflow finds no GPU")
    base = keras.applications.VGG16(weights=None, include_top=False, pooling="avg", input_shape=(height, width, 3))
    network = keras.Sequential([base, keras.layers.Dense(_CLASSES, activation="softmax")])
    return lambda batch: network.predict_on_batch(batch.astype("float32") / 255)
