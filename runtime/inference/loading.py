"""Open a model in threads: its file is read and hashed, then opened, while the caller goes on importing."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artefact
from mri_edge.engines import Engine, ModelFile, engine_file, open_engine
from mri_edge.errors import ProviderUnavailable
from mri_edge.scans.result_warning import ResultWarning

from .selection import Selection, select

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """What came up; ``warnings`` belong into every prediction."""

    artefact: Artefact
    engine: Engine
    batch_size: int
    warnings: tuple[ResultWarning, ...]


class Opening:
    """Begins to open a model; ``wait`` gives it when it is open.

    Hashing a file and opening a model happen outside Python for most of their time. A cold ``predict``
    imports the engine's library beside the first, and the decoder and the like beside the second. The bytes
    that were hashed are the bytes that the engine opens.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        artefact: str | None = None,
        engine: str | None = None,
        provider: str = "auto",
        threads: int | None = None,
        many: bool = True,
        allow_fallback: bool = False,
    ) -> None:
        """Parameters as for ``Classifier.load``. Raises what ``selection.select`` does."""
        self.bundle = bundle
        self.arguments: dict[str, Any] = {
            "artefact": artefact,
            "engine": engine,
            "provider": provider,
            "threads": threads,
            "many": many,
            "allow_fallback": allow_fallback,
        }
        self._start = perf_counter()
        self._select = partial(select, bundle, artefact, engine, provider=provider, threads=threads, many=many)
        self._provider = provider
        self._allow_fallback = allow_fallback
        self._begin(self._select())

    def _begin(self, chosen: Selection) -> None:
        self._chosen = chosen
        pool = ThreadPoolExecutor(2, thread_name_prefix="open")
        reading = pool.submit(ModelFile.of, self.bundle, chosen.artefact)
        _import_library(chosen.engine)
        self._opening = pool.submit(self._open, chosen, reading)
        pool.shutdown(wait=False)

    def wait(self) -> Opened:
        """The opened engine.

        Raises
        ------
        IntegrityError
            The file was changed.
        EngineUnavailable, ProviderUnavailable, EngineError
            As for ``engines.open_engine``.
        """
        opened = self._opening.result()
        if self._is_unlike_the_profile(opened.engine):
            opened.engine.close()
            self._begin(self._select(tuned=False))
            opened = self._opening.result()
        _log.info(
            "%s (%s), engine %s, provider %s, threads %d, batch %d; verified and opened in %.0f ms",
            self.bundle.folder / opened.artefact.file,
            self._chosen.reason,
            opened.engine.name,
            opened.engine.provider,
            opened.engine.threads,
            opened.batch_size,
            (perf_counter() - self._start) * 1e3,
        )
        return opened

    def _is_unlike_the_profile(self, engine: Engine) -> bool:
        measured_on = self._chosen.measured_on
        if measured_on in (None, engine.provider):
            return False
        words = "device profile ignored, it was made on %s and %s came up. Run 'mri-edge tune' again"
        _log.warning(words, measured_on, engine.provider)
        return True

    def _open(self, chosen: Selection, reading: Future[ModelFile]) -> Opened:
        warnings: tuple[ResultWarning, ...] = ()
        model = reading.result()
        try:
            engine = open_engine(model, engine=chosen.engine, provider=self._provider, threads=chosen.threads)
        except ProviderUnavailable as error:
            if not self._allow_fallback:
                raise
            engine = open_engine(model, engine=chosen.engine, provider="cpu", threads=chosen.threads)
            words = f"{error.problem}; {engine.provider} ran in its place"
            warnings = (ResultWarning("provider_fallback", words),)
        return Opened(chosen.artefact, engine, chosen.batch, warnings)


def _import_library(engine: str) -> None:
    """Import an engine's library before its thread starts, which would wait for whatever its opener imports."""
    if module := engine_file(engine).MODULE:
        with suppress(ImportError):  # the engine's own ``open`` imports it again, and says what is wrong with it
            import_module(module)
