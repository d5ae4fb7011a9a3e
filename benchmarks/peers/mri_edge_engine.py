"""mri-edge itself: the engine as ``predict`` opens it, ``engine`` by its name in ``runtime/engines``."""

from __future__ import annotations


def open(model, threads, engine=None):
    from pathlib import Path

    from mri_edge.engines import open_engine

    return open_engine(Path(model), engine=engine, provider="cpu", threads=threads).run
