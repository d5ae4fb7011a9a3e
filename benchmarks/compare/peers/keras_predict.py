"""``keras.Model.predict``, as a notebook calls it; normalization is part of the call because the model takes floats."""

from __future__ import annotations


def open(model, threads):
    from benchmarks.compare.peers._keras import load

    network, normalize = load(model, threads)
    return lambda batch: network.predict(normalize(batch), verbose=0)
