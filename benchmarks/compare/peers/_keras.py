"""Load a Keras model for both Keras peers, with its threads and the normalization of its manifest."""

from __future__ import annotations

import os
from pathlib import Path


def load(model, threads):
    """Return the Keras model, and the function that turns uint8 RGB into its input."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    from mri_edge.bundles.bundle import Bundle

    network = keras.models.load_model(model, compile=False)
    return network, Bundle.open(Path(model).parent).manifest.preprocessing.normalize
