"""Ways to run the network that a user might choose instead, one function each, written as their documentation shows.

Each function takes the path of a model and the number of threads, imports its library, and returns a function from
uint8 (N, H, W, 3) RGB to float32 probabilities (N, classes).
"""

from __future__ import annotations

import os
from pathlib import Path


def mri_edge_engine(model, threads, engine=None):
    """Open an engine as ``predict`` does, except that ``predict`` runs a network below 1 MiB on one thread."""
    from mri_edge.engines import open_engine

    return open_engine(Path(model), engine=engine, provider="cpu", threads=threads).run


def onnxruntime_script(model, threads):
    """Open a session with default options."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def openvino_api(model, threads):
    """Tune OpenVINO for latency. It computes float32 models in bfloat16 where the CPU can; mri-edge sets float32."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda batch: compiled(batch)[0]


def litert_api(model, threads):
    """Allocate LiteRT's tensors again when the batch size changes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=threads)
    pixels, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    shape = None

    def run(batch):
        nonlocal shape
        if batch.shape != shape:
            interpreter.resize_tensor_input(pixels, batch.shape)
            interpreter.allocate_tensors()
            shape = batch.shape
        interpreter.set_tensor(pixels, batch)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return run


def keras_predict(model, threads):
    """Call ``keras.Model.predict`` as a notebook does; normalization counts because the model takes floats."""
    network, normalize = _load_keras(model, threads)
    return lambda batch: network.predict(normalize(batch), verbose=0)


def keras_function(model, threads):
    """Put the Keras model into a ``tf.function``, as TensorFlow recommends for many small calls."""
    network, normalize = _load_keras(model, threads)
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.float32)]
    call = tf.function(lambda x: network(x, training=False), input_signature=signature)
    return lambda batch: call(normalize(batch)).numpy()


def _load_keras(model, threads):
    """Return the Keras model, and the function of its manifest that turns uint8 RGB into its input."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    from mri_edge.bundles.bundle import Bundle

    network = keras.models.load_model(model, compile=False)
    return network, Bundle.open(Path(model).parent).manifest.preprocessing.normalize
