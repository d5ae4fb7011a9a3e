"""Every error that mri-edge raises deliberately, as one tree.

::

    MriEdgeError
    ├── UsageError              the call itself is wrong                    exit 2
    │   └── DataError           a training or calibration folder is unusable exit 2
    ├── OutputError             the result cannot be written                exit 6
    ├── InputError              one scan cannot be read; others are read     exit 1
    ├── BundleError             a model bundle cannot be used               exit 3
    │   ├── ManifestError       its manifest is missing, broken or newer    exit 3
    │   ├── IntegrityError      a file differs from its recorded hash       exit 3
    │   ├── SignatureError      a required signature is missing or wrong    exit 3
    │   ├── WeightsError        backbone weights are missing or untrusted   exit 3
    │   └── ConversionError     a model cannot be converted to a format     exit 3
    ├── EngineError             an engine cannot run the artifact           exit 4
    │   ├── EngineUnavailable   the engine's library is not installed       exit 4
    │   └── ProviderUnavailable the execution provider did not start         exit 4
    └── GateError               a gate was not met: accuracy or speed       exit 5

The library raises these; only ``mri_edge.cli`` turns them into a line on stderr and
an exit code. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

# Error numbers for a disk that is full, over quota, read-only or failing.
DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


class MriEdgeError(Exception):
    """Base of all errors raised deliberately. ``exit_code`` is what the command line returns.

    Attributes
    ----------
    problem
        What is wrong and what was received, without a period.
    hint
        What to do next; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}. {hint}" if hint else problem)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their args, which differ from our constructor's. Process pools pickle them.
        return type(self), (self.problem, self.hint)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's exception, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Escape line breaks, color codes and the like in foreign text, such as a file name, for one line on a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


class UsageError(MriEdgeError):
    """The call is wrong: an unknown option value, or nothing to work on."""

    exit_code = 2


class DataError(UsageError):
    """A training, test or calibration folder is missing, empty or unusable."""


class OutputError(MriEdgeError):
    """The result cannot be written to its destination: the disk is full, read-only or missing."""

    exit_code = 6


class InputError(MriEdgeError):
    """One scan cannot be read; the other inputs of the same call are not affected.

    Attributes
    ----------
    code
        What is wrong, as one stable word for programs: ``"missing"``, ``"damaged"``, ``"unsupported"``, …
    value, limit
        The received value and the limit that it exceeds, or None.
    source
        The wrong argument, if the error takes its place in a list of scans; see ``scans.sources.expand``.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        hint: str = "",
        *,
        code: str = "unreadable",
        value: float | None = None,
        limit: float | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(problem, hint)
        self.code = code
        self.value = value
        self.limit = limit
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        keywords = partial(InputError, code=self.code, value=self.value, limit=self.limit, source=self.source)
        return keywords, (self.problem, self.hint)


class BundleError(MriEdgeError):
    """A model bundle, or one of its files, cannot be used."""

    exit_code = 3


class ManifestError(BundleError):
    """The manifest is missing, is not valid, or has a schema version this release does not know."""


class IntegrityError(BundleError):
    """A file of the bundle differs from the size or SHA-256 in its manifest."""


class SignatureError(BundleError):
    """The bundle is not signed, or not by the key that was required."""


class WeightsError(BundleError):
    """Backbone weights cannot be fetched, or do not match their recorded hash."""


class ConversionError(BundleError):
    """A model, or a part of it, cannot be converted to the requested format."""


class EngineError(MriEdgeError):
    """An inference engine cannot open or run an artifact."""

    exit_code = 4


class EngineUnavailable(EngineError):
    """The engine's library is not installed or cannot be loaded."""


class ProviderUnavailable(EngineError):
    """The requested execution provider did not start."""


class GateError(MriEdgeError):
    """A gate was not met: of accuracy or parity, where nothing was written, or of speed."""

    exit_code = 5
