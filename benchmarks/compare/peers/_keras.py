"""What both Keras peers share: the model, its threads, and the manifest's normalisation."""

from __future__ import annotations

import os
from pathlib import Path


def load(model, threads):
    """The Keras model and a function from uint8 RGB to what it takes."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    from mri_edge.bundles.bundle import Bundle

    network = keras.models.load_model(model, compile=False)
    return network, Bundle.open(Path(model).parent).manifest.preprocessing.normalise
