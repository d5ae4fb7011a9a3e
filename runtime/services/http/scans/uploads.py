"""Receive scans: one as the body, or several as a form or a zip file, which go into a private temporary folder."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, BinaryIO

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mri_edge.scans import readers
from mri_edge.services.http.errors import RequestRefused
from mri_edge.services.http.exchange import Exchange
from mri_edge.services.http.limits import MAX_FILES, ByteBudget, Limits, expired

from .archives import SIGNATURE, entries

_FORM = b"multipart/form-data"
_PIECE = 1 << 20
_PREFIX = "mri-edge-upload-"  # of the names of files, so that messages about them can be given the names of the client
_MAX_TEXT = 1 << 10  # bytes of a field of a form that is not a file


@dataclass(frozen=True)
class Store:
    """Where uploads go: what one may contain, and the bytes that all may have on the disk."""

    limits: Limits
    budget: ByteBudget


class Upload:
    """The scans of one request. Close it, which removes its files.

    Attributes
    ----------
    store
        Where it goes.
    scan
        The bytes of the only scan, or None if there are several, or a zip file.
    name
        What the client calls the only scan, or None.
    skipped
        Names of the files in the upload that are no scans.
    stopped
        Set when the request ends: a thread that still works for it ends at its next piece or frame.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.scan: bytes | None = None
        self.name: str | None = None
        self.skipped: list[str] = []
        self.stopped = Event()
        self._stored = 0  # bytes
        self._names: dict[str, str] = {}  # what the client calls each file in the folder
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = Lock()  # a thread may add files while the request that it works for ends

    @property
    def has_files(self) -> bool:
        """Whether a thread has written files."""
        return self._folder is not None

    def paths(self) -> list[str]:
        """Return the scans as files, in the order of their names."""
        if self.scan is not None and not self._names:
            self.add(self.name, [self.scan])
        return [f"{self._folder.name}{os.sep}{name}" for name in self._names] if self._folder else []

    def add(self, name: str | None, pieces: Iterable[bytes]) -> None:
        """Write a file into the folder. ``name`` is what the client calls it; it is never used as a path."""
        with self._lock:
            self._add(name, pieces)

    def _add(self, name: str | None, pieces: Iterable[bytes]) -> None:
        self._check()
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mri-edge-", ignore_cleanup_errors=True)
        # The suffix decides which reader takes the file, as for a file on a disk.
        suffix = next((known for known in _suffixes() if name and name.lower().endswith(known)), "")
        file_name = f"{_PREFIX}{len(self._names):06}{suffix}"
        path = f"{self._folder.name}{os.sep}{file_name}"
        with open(path, "xb") as file:
            for piece in pieces:
                self._check()
                self.store.budget.take(len(piece))
                self._stored += len(piece)
                file.write(piece)
        if suffix or readers.recognizes_content(readers.first_bytes(path), path):
            self._names[file_name] = name or "scan"
        else:
            Path(path).unlink()
            self.skipped.append(name or "scan")

    def _check(self) -> None:
        if self.stopped.is_set():
            raise expired()

    def renamed(self, value: Any) -> Any:
        """Return the JSON of a result with the names of the client in place of paths."""
        if self._folder is None:
            return value
        pattern = re.compile(rf"(?:{re.escape(self._folder.name + os.sep)})?{_PREFIX}\d{{6}}[.a-z]*")
        return self._renamed(value, pattern)

    def _renamed(self, value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, dict):
            return {key: self._renamed(member, pattern) for key, member in value.items()}
        if isinstance(value, list):
            return [self._renamed(member, pattern) for member in value]
        if isinstance(value, str) and _PREFIX in value:
            return pattern.sub(lambda match: self._names.get(Path(match[0]).name, match[0]), value)
        return value

    def close(self) -> None:
        """Remove the files."""
        self.stopped.set()
        with self._lock:
            if self._folder is not None:
                self._folder.cleanup()
            self.store.budget.release(self._stored)
            self._stored = 0


def _suffixes() -> tuple[str, ...]:
    # The longest first, because .nii.gz ends in .gz only.
    return tuple(sorted(readers.suffixes(), key=len, reverse=True))


async def receive(exchange: Exchange, upload: Upload, pool: Executor) -> None:
    """Read the body of a request into ``upload``; ``pool`` writes files. Raises as ``Exchange.stream`` and ``run``."""
    if exchange.headers.get(b"content-type", b"").lower().startswith(_FORM):
        await _receive_form(exchange, upload, pool)
        return
    body = await exchange.body()
    if not body:
        raise RequestRefused(400, "empty", "the body is empty. Send the bytes of a scan")
    if body.startswith(SIGNATURE):
        await exchange.run(pool, _save, upload, [(None, io.BytesIO(body))])
    else:
        upload.scan = body


async def _receive_form(exchange: Exchange, upload: Upload, pool: Executor) -> None:
    headers = Headers(raw=exchange.scope["headers"])
    parser = MultiPartParser(headers, exchange.stream(), max_files=MAX_FILES, max_fields=16, max_part_size=_MAX_TEXT)
    # Each larger file stays an open file on the disk until the form is read: at most 32, of all bodies together.
    parser.spool_max_size = upload.store.limits.held_bytes // 32
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        # Only Starlette's own messages are known to contain nothing of the upload.
        reason = error.message.rstrip(".") if isinstance(error, MultiPartException) else "a header is damaged"
        raise RequestRefused(400, "bad_form", f"the form cannot be read: {reason}") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise RequestRefused(400, "empty", "the form has no file. Send it as curl -F file=@scan.jpg does")
        if len(files) == 1 and not _is_zip(files[0].file):
            upload.scan, upload.name = await files[0].read(), files[0].filename
        else:
            await exchange.run(pool, _save, upload, [(value.filename, value.file) for value in files])
    finally:
        await form.close()


def _is_zip(file: BinaryIO) -> bool:
    signature = file.read(len(SIGNATURE))
    file.seek(0)
    return signature == SIGNATURE


def _save(upload: Upload, files: Sequence[tuple[str | None, BinaryIO]]) -> None:
    """Write these files, sorted by name, with zip files unpacked."""
    for name, file in sorted(files, key=lambda pair: pair[0] or ""):
        if _is_zip(file):
            for entry, pieces in entries(file, upload.store.limits):
                upload.add(entry if len(files) == 1 else f"{name}/{entry}", pieces)
        else:
            upload.add(name, iter(partial(file.read, _PIECE), b""))
