"""``keras.Model.predict``, as a notebook calls it; the model takes normalised floats, so that is part of the call."""

from __future__ import annotations


def open(model, threads):
    from peers._keras import load

    network, normalise = load(model, threads)
    return lambda batch: network.predict(normalise(batch), verbose=0)
