"""Classifier: a bundle, opened in an engine, that turns scans into predictions."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.bundles.manifest import Artefact
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import Engine, is_inherited
from mri_edge.errors import EngineError, InputError, UsageError
from mri_edge.scans.checks import doubts
from mri_edge.scans.preprocessing import Pixels
from mri_edge.scans.readers import picture
from mri_edge.scans.readers.picture import Source
from mri_edge.scans.result_warning import ResultWarning

from .loading import Opening
from .out_of_distribution import NoveltyCheck
from .prediction import Failure, Latency, Pause, Prediction, decide
from .selection import DEFAULT_BATCH

_MANY_PIXELS = 4 << 20  # bytes of decoded scans that wait in a thread for the next ones, to be resized with them


@dataclass(frozen=True)
class _Decoded:
    """A scan as it was decoded, and the milliseconds that it took."""

    file: str | None
    pixels: Pixels
    decode_ms: float


@dataclass(frozen=True)
class _Ready:
    """A scan as the network takes it, with the milliseconds that it took to get there; resized among others."""

    file: str | None
    fitted: Pixels
    doubts: tuple[ResultWarning, ...]
    decode_ms: float
    resize_ms: float
    pixels: Pixels | None


class Classifier:
    """Classifies scans. Safe to share between threads.

    In a process that inherits it by ``fork`` it opens its model again at the first prediction, with an engine of
    its own; ``close`` there leaves the parent's alone. Pickled, it is what ``load`` was given, and opens that again.

    >>> from mri_edge import Classifier
    >>> with Classifier.load() as classifier:
    ...     prediction = classifier.predict("examples/mni152-slice-1.jpg")
    >>> prediction.label in ("tumour", "no tumour")
    True
    """

    def __init__(
        self,
        bundle: Bundle,
        artefact: Artefact,
        engine: Engine,
        *,
        batch_size: int = DEFAULT_BATCH,
        warnings: tuple[ResultWarning, ...] = (),
    ) -> None:
        """Use ``load``; this takes parts that are open already, a fake engine in tests for instance.

        ``batch_size`` is what ``predict_batches`` uses by itself; ``warnings`` go into every prediction.
        """
        self.bundle = bundle
        self.artefact = artefact
        self.engine = engine
        self.batch_size = batch_size
        self._closed = False
        self._warnings = warnings
        self._given: str | os.PathLike[str] | Bundle = bundle
        self._signed_by: str | os.PathLike[str] | None = None
        self._arguments: dict[str, Any] | None = None  # of the Opening; None where the parts were open already
        self._locks: dict[int, Lock] = {}  # by process: the parent's may be held by a thread that is not here
        self._novelty = NoveltyCheck.of(bundle)
        if self._novelty:
            self._novelty.check_fits(engine.outputs)
        preprocessing = bundle.manifest.preprocessing
        declared = engine.input.shape[1:]
        if declared != (preprocessing.height, preprocessing.width, 3):
            raise EngineError(
                f"{artefact.file}: takes {declared}, the manifest prepares "
                f"{(preprocessing.height, preprocessing.width, 3)}",
                "Export the model again",
            )
        if engine.outputs[0].shape[1:] != (len(bundle.manifest.labels),):
            raise EngineError(
                f"{artefact.file}: gives {engine.outputs[0].shape[1:]} values, "
                f"the manifest has {len(bundle.manifest.labels)} labels",
                "Export the model again",
            )

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | Bundle = DEFAULT_MODEL,
        *,
        artefact: str | None = None,
        engine: str | None = None,
        provider: str = "auto",
        threads: int | None = None,
        many: bool = True,
        allow_fallback: bool = False,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Classifier:
        """Open a model. What is left open is chosen by ``selection.select``.

        Parameters
        ----------
        model
            The name of an embedded model, a bundle folder (``"./small"`` for one of such a name), a packed bundle, or
            an opened Bundle.
        artefact
            File of the bundle to run, ``"model.int8.onnx"``; default: the best that an installed engine opens.
        engine
            ``"onnxruntime"`` (or ``"onnx"``, ``"ort"``), ``"litert"`` (or ``"tflite"``), …; default: the preferred
            one for the artefact.
        provider
            ``"auto"`` takes the best that comes up; any other name is strict. ``"gpu"``: the best GPU provider.
        threads
            Intra-op threads, at most the cores that this process may use; default: what the device profile says,
            else 1 for a model below 1 MiB, and for a larger one all those cores.
        many
            Whether many scans will come at a time, or single ones: a device profile knows what suits which.
        allow_fallback
            Run on the CPU when ``provider`` does not come up, and say so in the warnings of every prediction.
        require_signature
            File of a public key: the owner of that key must have signed the bundle. Default: the key that the
            variable MRI_EDGE_REQUIRE_SIGNATURE names.

        Raises
        ------
        BundleError, ManifestError, IntegrityError, SignatureError
            The bundle cannot be used.
        UsageError, EngineUnavailable, ProviderUnavailable, EngineError
            The engine cannot run it.
        """
        if isinstance(model, Bundle) and require_signature is None:
            bundle = model  # it was opened under the same variable
        else:
            place = model.folder if isinstance(model, Bundle) else model
            bundle = Bundle.open(place, signed_by=require_signature)
        classifier = cls.opened(
            Opening(
                bundle,
                artefact=artefact,
                engine=engine,
                provider=provider,
                threads=threads,
                many=many,
                allow_fallback=allow_fallback,
            )
        )
        classifier._given, classifier._signed_by = model, require_signature
        return classifier

    @classmethod
    def opened(cls, opening: Opening) -> Classifier:
        """Wait for a model that is being opened. Raises what ``Opening.wait`` does."""
        opened = opening.wait()
        classifier = cls(
            opening.bundle, opened.artefact, opened.engine, batch_size=opened.batch_size, warnings=opened.warnings
        )
        classifier._arguments = opening.arguments
        return classifier

    def predict(self, source: Source, *, keep_pixels: bool = False) -> Prediction:
        """Classify one scan: a path, the bytes of a file, a Pillow image, or an array (see ``images.load``).

        With ``keep_pixels`` the prediction holds the scan as it was decoded.

        Raises
        ------
        InputError
            The scan cannot be read; the message says why.
        EngineError
            The engine failed, or its answer is no number.
        UsageError
            The classifier is closed.
        """
        scan = _decode(source)
        try:
            ready = self._prepare([scan], keep_pixels)
        except MemoryError as error:
            raise picture.no_memory(scan.file or "scan") from error
        return self._infer(ready)[0]

    def predict_batches(
        self,
        sources: Iterable[Source | Failure | Pause],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        keep_pixels: bool = False,
    ) -> Iterator[Prediction | Failure]:
        """Classify many scans: yields in input order, a Failure in the place of a scan that cannot be read.

        A Failure among the sources passes through, so that a listing can report what it did not find. At a Pause
        all that came before it is answered before the next is asked for, else two batches are gathered first.
        Scans are decoded by ``workers`` threads beside inference, at most two batches ahead, so that
        memory stays bounded however long ``sources`` is; it may be a generator without end.
        With ``keep_pixels`` each prediction holds its scan as it was decoded.

        Raises
        ------
        EngineError
            The engine failed; unlike a bad file this concerns every scan.
        UsageError
            ``sources`` is one scan, ``batch_size`` or ``workers`` is less than 1.

        What ``sources`` itself raises comes once the scans before it are answered.
        """
        if isinstance(sources, str | bytes | os.PathLike):
            raise UsageError(f"predict_batches takes many scans. Received: {sources!r:.60}", "Say [scan], or predict")
        batch_size = self.batch_size if batch_size is None else batch_size
        workers = available_cpus() if workers is None else workers
        if batch_size < 1 or workers < 1:
            raise UsageError(f"batch_size and workers must be at least 1. Received: {batch_size} and {workers}")
        return self._batches(sources, batch_size, workers, keep_pixels)

    def _batches(
        self, sources: Iterable[Source | Failure | Pause], batch_size: int, workers: int, keep_pixels: bool
    ) -> Iterator[Prediction | Failure]:
        # A thread takes its whole share of a batch at once: handing over scan by scan takes longer than resizing.
        share = -(-batch_size // workers)
        remaining = iter(sources)
        process = os.getpid()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            ahead: deque[list[Future[list[_Ready | Failure]]]] = deque()

            paused = ended = False
            broken: Exception | None = None

            def fill() -> None:
                nonlocal paused, ended, broken
                paused = False
                while len(ahead) < 2 and not (paused or ended):
                    batch: list[Source | Failure] = []
                    try:
                        for one in remaining:
                            if isinstance(one, Pause):
                                paused = True
                                break
                            batch.append(one)
                            if len(batch) == batch_size:
                                break
                        else:
                            ended = True
                    except Exception as error:  # noqa: BLE001 (raised below, when what came before it is answered)
                        broken, ended = error, True
                    shares = [batch[start : start + share] for start in range(0, len(batch), share)]
                    if shares:
                        ahead.append([pool.submit(self._prepare_each, one, keep_pixels) for one in shares])

            try:
                while ahead or not ended:
                    if os.getpid() != process:
                        raise UsageError("these results were begun in another process", "Call predict_batches again")
                    if not ahead:
                        fill()
                        continue
                    answered = [one for future in ahead.popleft() for one in future.result()]
                    if not paused:
                        fill()  # the next ones decode while this batch runs
                    yield from self._answer(answered)
                if broken is not None:
                    raise broken
            finally:
                for future in chain.from_iterable(ahead):
                    future.cancel()

    def close(self) -> None:
        """Give back the engine's memory and threads. It predicts no more."""
        self._closed = True
        self.engine.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed or self._arguments is None:
            reason = "it is closed" if self._closed else "it was made of an engine that was open already"
            raise UsageError(f"this classifier cannot be pickled or copied: {reason}", "Use one of Classifier.load")
        return _load, (type(self), self._given, self._arguments | {"require_signature": self._signed_by})

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, decoded: Sequence[_Decoded], keep_pixels: bool) -> list[_Ready]:
        """Resize and examine scans together: threads that take many short steps stand in each other's way."""
        if not decoded:
            return []
        start = perf_counter()
        fitted = self.bundle.manifest.preprocessing.fit_each([one.pixels for one in decoded])
        resize_ms = (perf_counter() - start) * 1e3 / len(decoded)
        reasons = doubts([one.pixels.shape[:2] for one in decoded], fitted)
        return [
            _Ready(one.file, row, doubt, one.decode_ms, resize_ms, one.pixels if keep_pixels else None)
            for one, row, doubt in zip(decoded, fitted, reasons, strict=True)
        ]

    def _prepare_each(self, sources: list[Source | Failure], keep_pixels: bool) -> list[_Ready | Failure]:
        prepared: list[_Ready | Failure] = []
        waiting: list[_Decoded | Failure] = []
        held = 0
        for source in sources:
            one = source if isinstance(source, Failure) else _decode_or_fail(source)
            waiting.append(one)
            held += one.pixels.nbytes if isinstance(one, _Decoded) else 0
            if held > _MANY_PIXELS:
                prepared += self._prepare_some(waiting, keep_pixels)
                waiting, held = [], 0
        return prepared + self._prepare_some(waiting, keep_pixels)

    def _prepare_some(self, decoded: list[_Decoded | Failure], keep_pixels: bool) -> list[_Ready | Failure]:
        scans = [scan for scan in decoded if isinstance(scan, _Decoded)]
        try:
            ready: Iterator[_Ready | Failure] = iter(self._prepare(scans, keep_pixels))
        except MemoryError:  # one by one, it is the failure of those that it does not suffice for
            ready = iter([self._prepare_or_fail(scan, keep_pixels) for scan in scans])
        return [next(ready) if isinstance(scan, _Decoded) else scan for scan in decoded]

    def _prepare_or_fail(self, scan: _Decoded, keep_pixels: bool) -> _Ready | Failure:
        try:
            return self._prepare([scan], keep_pixels)[0]
        except MemoryError:
            return Failure(scan.file, picture.no_memory(scan.file or "scan"))

    def _answer(self, batch: list[_Ready | Failure]) -> Iterator[Prediction | Failure]:
        ready = [one for one in batch if isinstance(one, _Ready)]
        predictions = iter(self._infer(ready) if ready else ())
        for one in batch:
            yield next(predictions) if isinstance(one, _Ready) else one

    def _infer(self, ready: list[_Ready]) -> list[Prediction]:
        if self._closed:
            raise UsageError("this classifier is closed", "Load it again")
        if is_inherited(self.engine) and self._arguments is not None:
            self._open_again(self._arguments)
        manifest = self.bundle.manifest
        batch = np.stack([one.fitted for one in ready])
        start = perf_counter()
        outputs = self.engine.run_all(batch)
        infer_ms = (perf_counter() - start) * 1e3 / len(ready)
        probabilities = outputs[self.engine.outputs[0].name]
        if not np.isfinite(probabilities).all():
            raise EngineError(
                f"{self.artefact.file}: gives probabilities that are no numbers in {self.engine.name} "
                f"({self.engine.provider})",
                "Take another --engine, or --provider cpu; 'mri-edge verify' replays known scans there",
            )
        features = outputs.get("features")
        strange = self._novelty.doubts(features) if self._novelty and features is not None else [()] * len(ready)
        activations = outputs.get("activation", [None] * len(ready))
        chosen = decide(probabilities, manifest.positive, manifest.threshold)
        labels, model = manifest.labels, manifest.title
        return [
            Prediction(
                file=one.file,
                label=labels[index],
                probabilities=dict(zip(labels, row, strict=True)),
                positive=labels[manifest.positive],
                threshold=manifest.threshold,
                model=model,
                model_hash=self.artefact.sha256[:12],
                artefact=self.artefact.file,
                engine=self.engine.name,
                provider=self.engine.provider,
                latency_ms=Latency(one.decode_ms, one.resize_ms, infer_ms),
                warnings=self._warnings + one.doubts + unlike,
                activation=activation,
                pixels=one.pixels,
            )
            for one, row, index, activation, unlike in zip(
                ready, probabilities.tolist(), chosen.tolist(), activations, strange, strict=True
            )
        ]

    def _open_again(self, arguments: dict[str, Any]) -> None:
        """In a forked child: open the same artefact in the same engine, which must come up on the same provider."""
        with self._locks.setdefault(os.getpid(), Lock()):
            before = self.engine
            if not is_inherited(before):  # another thread was faster
                return
            threads = min(before.threads, available_cpus())  # a worker may have been given fewer cores
            same = {"artefact": self.artefact.file, "engine": before.name, "threads": threads}
            engine = Opening(self.bundle, **(arguments | same)).wait().engine
            if engine.provider != before.provider:
                engine.close()
                raise EngineError(
                    f"{self.artefact.file}: the parent process runs it on {before.provider}, and in this one "
                    f"{engine.provider} came up",
                    "Load the classifier after the fork",
                )
            self.engine = engine


def _load(kind: type[Classifier], model: str | os.PathLike[str] | Bundle, arguments: dict[str, Any]) -> Classifier:
    """What a pickle of a classifier calls."""
    return kind.load(model, **arguments)


def _decode(source: Source) -> _Decoded:
    start = perf_counter()
    pixels = picture.load(source)
    return _Decoded(name_of(source), pixels, (perf_counter() - start) * 1e3)


def _decode_or_fail(source: Source) -> _Decoded | Failure:
    try:
        return _decode(source)
    except InputError as error:
        return Failure(name_of(source), error)


def name_of(source: Source) -> str | None:
    """The path as it was given, or None for a picture without one."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None
