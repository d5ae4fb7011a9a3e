"""Open a model in threads: its file is read and hashed, then opened, while the caller continues importing."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from time import perf_counter

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.engines import Engine, ModelFile, engine_file, open_engine
from mri_edge.errors import ProviderUnavailable
from mri_edge.records import dataclass
from mri_edge.scans.checks import ResultWarning

from .selection import RunOptions, Selection, select

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """An opened model. ``warnings`` are added to every prediction; ``tuned``: it runs as the device profile says."""

    artifact: Artifact
    engine: Engine
    batch_size: int
    warnings: tuple[ResultWarning, ...]
    tuned: bool


class PendingModel:
    """A model that is being opened; ``wait`` returns it when it is open.

    Hashing a file and opening a model spend most of their time outside Python. A cold ``predict`` imports the engine's
    library during the hashing, and the decoder and other modules during the opening. The engine opens exactly the bytes
    that were hashed.
    """

    def __init__(self, bundle: Bundle, run: RunOptions | None = None) -> None:
        """Start opening the model. Raises what ``selection.select`` does."""
        self.bundle = bundle
        self.run = run or RunOptions()
        self._start = perf_counter()
        self._begin(select(bundle, self.run))

    def _begin(self, selection: Selection) -> None:
        self._selection = selection
        pool = ThreadPoolExecutor(2, thread_name_prefix="open")
        reading = pool.submit(ModelFile.of, self.bundle, selection.artifact)
        _import_library(selection.engine)
        self._loading = pool.submit(self._open, selection, reading)
        pool.shutdown(wait=False)

    def wait(self) -> LoadedModel:
        """Return the model, with its engine open.

        Raises
        ------
        IntegrityError
            The file was changed.
        EngineUnavailable, ProviderUnavailable, EngineError
            As for ``engines.open_engine``.
        """
        loaded = self._loading.result()
        if self._contradicts_profile(loaded.engine):
            loaded.engine.close()
            self._begin(select(self.bundle, self.run, tuned=False))
            loaded = self._loading.result()
        _log.info(
            "%s (%s), engine %s, provider %s, threads %d, batch %d; verified and opened in %.0f ms",
            self.bundle.folder / loaded.artifact.file,
            self._selection.reason,
            loaded.engine.name,
            loaded.engine.provider,
            loaded.engine.threads,
            loaded.batch_size,
            (perf_counter() - self._start) * 1e3,
        )
        return loaded

    def _contradicts_profile(self, engine: Engine) -> bool:
        """Whether the selection relies on measurements with another provider than the one that started."""
        measured_on = self._selection.measured_on
        if measured_on in (None, engine.provider):
            return False
        message = "device profile ignored, it was made on %s but %s started. Run 'mri-edge tune' again"
        _log.warning(message, measured_on, engine.provider)
        return True

    def _open(self, selection: Selection, reading: Future[ModelFile]) -> LoadedModel:
        warnings: tuple[ResultWarning, ...] = ()
        model, name, threads = reading.result(), selection.engine, selection.threads
        try:
            engine = open_engine(model, engine=name, provider=self.run.provider, threads=threads)
        except ProviderUnavailable as error:
            if not self.run.allow_fallback:
                raise
            engine = open_engine(model, engine=name, provider="cpu", threads=threads)
            message = f"{error.problem}; {engine.provider} ran in its place"
            warnings = (ResultWarning("provider_fallback", message),)
        return LoadedModel(selection.artifact, engine, selection.batch, warnings, selection.measured_on is not None)


def _import_library(engine: str) -> None:
    """Import an engine's library in this thread, before another thread opens the model with it."""
    if module := engine_file(engine).MODULE:
        with suppress(ImportError):  # the engine's own ``open`` imports it again and reports the problem
            import_module(module)
