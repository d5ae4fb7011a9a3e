"""Turn what ends a run into an error of this package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mri_edge.errors import DISK_ERRORS, EngineError, MriEdgeError, OutputError, printable


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turn what ended the run into one of our errors: it was raised in another process, inside those of Ray."""
    try:
        yield
    except MriEdgeError:
        raise
    except Exception as error:
        import ray

        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, MriEdgeError):
                raise cause from error
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
                reason = os.strerror(cause.errno or 0)
                problem = (
                    f"{cause.filename or out}: cannot write ({reason})"  # Arrow, which writes results, names no file
                )
                raise OutputError(problem, "Free some space and run again: it continues from here") from error
        if isinstance(error, ray.exceptions.RayActorError):
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"a worker cannot start ({printable(reason)[:200]})",
                "Install the same version of mri-edge on every node; run again to continue",
            ) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, BaseException) and found not in seen:
            seen.append(found)
            yield found
            waiting += [found.__cause__, found.__context__, getattr(found, "cause", None)]
