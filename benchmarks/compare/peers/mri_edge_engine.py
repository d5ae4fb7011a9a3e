"""mri-edge itself: one engine of ``runtime/engines``, on as many threads as the other peers.

``predict`` opens it the same way, except that it runs a network below 1 MiB on one thread.
"""

from __future__ import annotations


def open(model, threads, engine=None):
    from pathlib import Path

    from mri_edge.engines import open_engine

    return open_engine(Path(model), engine=engine, provider="cpu", threads=threads).run
