"""The Keras model in ``tf.function``, as TensorFlow recommends for many small calls."""

from __future__ import annotations


def open(model, threads):
    from benchmarks.compare.peers._keras import load

    network, normalize = load(model, threads)
    import tensorflow as tf

    shape = (None, *network.input_shape[1:])
    call = tf.function(lambda x: network(x, training=False), input_signature=[tf.TensorSpec(shape, tf.float32)])
    return lambda batch: call(normalize(batch)).numpy()
