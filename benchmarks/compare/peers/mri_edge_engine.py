"""mri-edge itself: an engine, by its name in ``runtime/engines``, on as many threads as all others here.

``predict`` opens it alike, but for a network below 1 MiB, which it runs on one thread.
"""

from __future__ import annotations


def open(model, threads, engine=None):
    from pathlib import Path

    from mri_edge.engines import open_engine

    return open_engine(Path(model), engine=engine, provider="cpu", threads=threads).run
