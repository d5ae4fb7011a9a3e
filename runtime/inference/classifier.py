"""Classifier: a bundle, opened in an engine, that turns scans into predictions."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import Engine, Outputs, is_inherited
from mri_edge.errors import EngineError, InputError, UsageError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.files import out_of_memory
from mri_edge.scans.frame import Frame, Pixels, Source, not_one_frame
from mri_edge.scans.options import DEFAULT as READ_DEFAULT
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

from .loading import PendingModel
from .out_of_distribution import FEATURES, OutOfDistributionCheck
from .prediction import HOT_SPOT, Failure, Latency, Prediction, decide, recalibrated
from .preparing import Decoded, Prepared, batched, decode_or_fail, prepare, prepare_in_pieces
from .selection import DEFAULT_BATCH, RunOptions, Workload

if TYPE_CHECKING:
    from mri_edge.scans.intensity import Window

    from .series import Plane, SeriesPrediction

# Names of outputs that some artifacts have; see ``engines.Engine``.
CONTRIBUTIONS = "contributions"
EXPLAINED = "explained"

_EXPORT_AGAIN = "Export the model again"


class Classifier:
    """Classifies scans. Safe to share between threads.

    After a ``fork`` the child opens the model again in its own engine, at its first prediction; ``close`` in the child
    does not close the parent's engine. A pickled classifier contains the arguments of ``load``, and unpickling it opens
    the model again.

    >>> from mri_edge import Classifier
    >>> with Classifier.load() as classifier:
    ...     prediction = classifier.predict("examples/mni152-slice-1.jpg")
    >>> prediction.label in ("tumour", "no tumour")
    True
    """

    def __init__(
        self,
        bundle: Bundle,
        artifact: Artifact,
        engine: Engine,
        *,
        batch_size: int = DEFAULT_BATCH,
        warnings: tuple[ResultWarning, ...] = (),
        reading: ReadOptions = READ_DEFAULT,
    ) -> None:
        """Combine an opened bundle and an opened engine, such as a fake one in tests. Otherwise use ``load``.

        ``batch_size`` is the default of ``predict_batches``; ``warnings`` are added to every prediction;
        ``reading`` says how the values of DICOM and NIfTI become pictures.
        """
        self.bundle = bundle
        self.artifact = artifact
        self.engine = engine
        self.batch_size = batch_size
        self.reading = reading
        self.tuned = False  # whether it runs as the device profile says
        self._closed = False
        self._warnings = warnings
        self._model: str | os.PathLike[str] | Bundle = bundle
        self._require_signature: str | os.PathLike[str] | None = None
        self._options: RunOptions | None = None  # None if the caller opened the engine
        # One lock for each process: after a fork the parent's may be held by a thread that the child does not have.
        self._locks: dict[int, Lock] = {}
        self._distribution_check = OutOfDistributionCheck.of(bundle)
        heatmaps = bundle.manifest.heatmaps
        measured = heatmaps.hot_spot if heatmaps and heatmaps.sha256 == artifact.sha256 else None
        self._hot_spot = HOT_SPOT if measured is None else measured
        if self._distribution_check:
            self._distribution_check.check_fits(engine.outputs)
        preprocessing = bundle.manifest.preprocessing
        declared = engine.input.shape[1:]
        if declared != (preprocessing.height, preprocessing.width, 3):
            raise EngineError(
                f"{artifact.file}: takes {declared}, the manifest specifies "
                f"{(preprocessing.height, preprocessing.width, 3)}",
                _EXPORT_AGAIN,
            )
        if engine.outputs[0].shape[1:] != (len(bundle.manifest.labels),):
            raise EngineError(
                f"{artifact.file}: gives {engine.outputs[0].shape[1:]} values, "
                f"the manifest has {len(bundle.manifest.labels)} labels",
                _EXPORT_AGAIN,
            )

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | Bundle = DEFAULT_MODEL,
        *,
        artifact: str | None = None,
        engine: str | None = None,
        provider: str = "auto",
        threads: int | None = None,
        workload: Workload = "many",
        allow_fallback: bool = False,
        window: str | Window = "file",
        any_modality: bool = False,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Classifier:
        """Open a model.

        Parameters
        ----------
        model
            The name of an embedded model, a bundle folder (``"./small"`` if an embedded model has that name), a
            packed bundle, or an opened Bundle.
        artifact, engine, provider, threads, workload, allow_fallback
            How to run it; see ``RunOptions``. ``selection.select`` chooses the omitted ones.
        window, any_modality
            How the values of DICOM and NIfTI become pictures; see ``ReadOptions``.
        require_signature
            File of the public key that must have signed the bundle. Default: the environment variable
            MRI_EDGE_REQUIRE_SIGNATURE.

        Raises
        ------
        BundleError, ManifestError, IntegrityError, SignatureError
            The bundle cannot be used.
        UsageError, EngineUnavailable, ProviderUnavailable, EngineError
            The engine cannot run it.
        """
        reading = ReadOptions(window, any_modality)
        run = RunOptions(artifact, engine, provider, threads, workload, allow_fallback, reading)
        return cls.load_with(run, model, require_signature=require_signature)

    @classmethod
    def load_with(
        cls,
        run: RunOptions,
        model: str | os.PathLike[str] | Bundle = DEFAULT_MODEL,
        *,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Classifier:
        """Open a model as ``load`` does, with its options in one object."""
        if isinstance(model, Bundle) and require_signature is None:
            bundle = model  # opening it checked the same environment variable
        else:
            path = model.folder if isinstance(model, Bundle) else model
            bundle = Bundle.open(path, signed_by=require_signature)
        classifier = cls.from_pending(PendingModel(bundle, run))
        classifier._model, classifier._require_signature = model, require_signature
        return classifier

    @classmethod
    def from_pending(cls, pending: PendingModel) -> Classifier:
        """Wait until a model is open, and return its classifier. Raises what ``PendingModel.wait`` does."""
        loaded = pending.wait()
        classifier = cls(
            pending.bundle,
            loaded.artifact,
            loaded.engine,
            batch_size=loaded.batch_size,
            warnings=loaded.warnings,
            reading=pending.run.reading,
        )
        classifier._options, classifier.tuned = pending.run, loaded.tuned
        return classifier

    def predict(self, source: Source, *, explain: bool = False, keep_pixels: bool = False) -> Prediction:
        """Classify one scan that holds one frame: a path, the bytes of a file, a Pillow image, an array, or a
        ``pydicom.Dataset``.

        With ``explain`` the prediction contains a heatmap, which takes about 140 runs of the network; with
        ``keep_pixels`` the section of the decoded frame that the network gets.

        Raises
        ------
        InputError
            The scan cannot be read, or holds several frames.
        EngineError
            The engine failed, or returned probabilities that are not finite.
        UsageError
            The classifier is closed.
        """
        decoded = next(decode_or_fail(source, self.reading), None)
        if isinstance(decoded, Failure):
            raise decoded.error
        if decoded is None or decoded.frame.count != 1:
            raise not_one_frame(source, decoded.frame.count if decoded else 0, "Use predict_frames")
        return self._predict(decoded, explain=explain, keep_pixels=keep_pixels)

    def predict_frames(
        self,
        source: Source,
        *,
        indexes: Collection[int] | None = None,
        explain: bool = False,
        keep_pixels: bool = False,
        reading: ReadOptions | None = None,
    ) -> Iterator[Prediction]:
        """Classify the frames of one scan, one after the other; with ``indexes`` only those frames.

        ``reading`` says how values become pictures; the default is as the classifier was loaded. Other parameters and
        errors as for ``predict``.
        """
        for decoded in decode_or_fail(source, reading or self.reading):
            if isinstance(decoded, Failure):
                if indexes is not None and decoded.frames > 1 and decoded.index not in indexes:
                    continue
                raise decoded.error
            if indexes is not None and decoded.frame.index not in indexes:
                continue
            yield self._predict(decoded, explain=explain, keep_pixels=keep_pixels)

    def predict_batches(
        self,
        sources: Iterable[Source | InputError],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        explain: bool = False,
        keep_pixels: bool = False,
        max_wait: float | None = None,
        reading: ReadOptions | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Classify many scans. Yields results in input order, with a Failure in place of a scan that cannot be read.

        An InputError among the sources becomes a Failure, so that a listing can report missing files.
        ``workers`` threads decode scans during inference, at most two batches ahead and some MiB of frames in each, so
        that memory stays bounded however many frames a scan has and however long ``sources`` is; it may be an endless
        generator.

        Parameters
        ----------
        batch_size
            Scans per run of the engine. Default: as tuned, else 8, or 64 for a model below 1 MiB.
        workers
            Threads that decode. Default: one for each core that this process may use.
        explain
            Whether each prediction contains a heatmap.
        keep_pixels
            Whether each prediction contains the section of its decoded frame that the network gets.
        max_wait
            Seconds that a scan waits for others to complete its batch, for a source that may be slow. ``sources`` is
            then read in a thread of its own. Default: batches are always completed.
        reading
            How values become pictures. Default: as the classifier was loaded.

        Raises
        ------
        EngineError
            The engine failed, which affects every scan.
        UsageError
            ``sources`` is one scan, or ``batch_size`` or ``workers`` is less than 1.

        An exception from ``sources`` is raised after the results of the scans before it.
        """
        if _is_one_scan(sources):
            received = f"array of shape {sources.shape}" if isinstance(sources, np.ndarray) else f"{sources!r:.60}"
            raise UsageError(f"predict_batches takes many scans. Received: {received}", "Pass [scan], or call predict")
        batch_size = self.batch_size if batch_size is None else batch_size
        workers = available_cpus() if workers is None else workers
        if batch_size < 1 or workers < 1:
            raise UsageError(f"batch_size and workers must be at least 1. Received: {batch_size} and {workers}")
        batches = batched(sources, batch_size, max_wait)
        return self._predict_batches(batches, batch_size, workers, explain, keep_pixels, reading or self.reading)

    def _predict_batches(
        self,
        batches: Iterator[list[Source | InputError]],
        batch_size: int,
        workers: int,
        explain: bool,
        keep_pixels: bool,
        reading: ReadOptions,
    ) -> Iterator[Prediction | Failure]:
        process = os.getpid()
        preprocessing = self.bundle.manifest.preprocessing
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        ahead: deque[Iterator[Prepared | Failure]] = deque()
        try:
            for batch in batches:
                if batch:
                    # Each thread gets its part of a batch at once: passing the scans one by one takes longer than
                    # resizing them. Neighbors are in different parts, so that volumes are read at the same time.
                    parts = [
                        _prepare_ahead(pool, batch[first::workers], preprocessing, reading, keep_pixels=keep_pixels)
                        for first in range(min(workers, len(batch)))
                    ]
                    ahead.append(_in_turn(parts, len(batch)))
                # Two batches are decoded while the engine runs one. A short batch means that no scan is waiting.
                while ahead and (len(ahead) > 2 or len(batch) < batch_size):
                    for result in self._answer(ahead.popleft(), batch_size, explain):
                        yield result
                        if os.getpid() != process:
                            raise UsageError(
                                "predict_batches was called in another process", "Call predict_batches again"
                            )
        finally:
            pool.shutdown(cancel_futures=True)

    def predict_prepared(
        self, prepared: Sequence[Prepared | Failure], *, batch_size: int | None = None
    ) -> Iterator[Prediction | Failure]:
        """Classify what ``prepare_in_pieces`` has read, maybe in another process, in the same order.

        Failures are yielded as they are. ``batch_size`` and errors are as for ``predict_batches``.
        """
        return self._answer(prepared, batch_size or self.batch_size, explain=False)

    def predict_series(
        self,
        sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        plane: Plane = "axial",
        recursive: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[SeriesPrediction | Failure]:
        """Classify series: every slice, and one answer from them all.

        All headers are read first, to group the files into series and to sort them. Then each file is read once, a few
        at a time. A series is yielded as soon as all of its slices have a result; a file of which no header can be read
        is yielded as a Failure.

        Parameters
        ----------
        sources
            Files, folders and patterns, or one of them.
        plane
            ``"axial"``: series of other planes are not classified and have ``skipped``. ``"any"``: all are.
        recursive
            Whether folders include their subfolders.
        batch_size, workers
            As for ``predict_batches``.

        Raises
        ------
        EngineError, UsageError
            As for ``predict_batches``; also UsageError for an unknown plane, and for a source that is no path, such as
            a ``pydicom.Dataset``, because slices are known by their files.
        """
        from mri_edge.scans.headers import slice_facts
        from mri_edge.scans.sources import expand

        from .series import classify_slices, combine, plan, what_ran

        named = [sources] if isinstance(sources, str | os.PathLike) else sources
        paths = expand([_series_path(source) for source in named], recursive=recursive)
        planned = plan(slice_facts(paths, self.reading), plane)
        results = classify_slices(planned, self, batch_size=batch_size, workers=workers)
        return combine(planned, results, what_ran(self))

    def infer(
        self, frames: Sequence[Prepared], *, explain: bool = False, check: Callable[[], None] | None = None
    ) -> list[Prediction]:
        """Classify frames that ``preparing.prepare`` returned, in one run of the engine. Errors as for ``predict``.

        ``check`` is called before each further run of an explanation, and ends the work if it raises.
        """
        return list(self._infer(frames, explain=explain, check=check))

    def predict_tensors(self, batch: Pixels) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Classify tensors of the network's size, without any check of the pictures in them.

        Parameters
        ----------
        batch
            uint8 (N, H, W, 3) RGB.

        Returns
        -------
        The probabilities, float32 (N, classes), and the index of the label that ``decide`` chose, (N,).
        Errors as for ``predict``.
        """
        return self._decide(self._run(batch, []))

    def close(self) -> None:
        """Release the engine's memory and threads. The classifier cannot be used afterwards."""
        self._closed = True
        self.engine.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed or self._options is None:
            reason = "it is closed" if self._closed else "it was created with an opened engine"
            raise UsageError(f"this classifier cannot be pickled or copied: {reason}", "Use Classifier.load")
        return _unpickle, (type(self), self._options, self._model, self._require_signature)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _predict(self, decoded: Decoded, *, explain: bool, keep_pixels: bool) -> Prediction:
        try:
            prepared = prepare([decoded], self.bundle.manifest.preprocessing, keep_pixels=keep_pixels)
        except MemoryError as error:
            raise out_of_memory(decoded.frame.source or "scan") from error
        return next(self._infer(prepared, explain=explain))

    def _answer(
        self, prepared: Iterable[Prepared | Failure], batch_size: int, explain: bool
    ) -> Iterator[Prediction | Failure]:
        # Batches are made of frames, because a scan may hold many of them.
        batch: list[Prepared | Failure] = []
        count = 0
        for result in prepared:
            batch.append(result)
            count += isinstance(result, Prepared)
            if count == batch_size:
                yield from self._answer_batch(batch, explain)
                batch, count = [], 0
        yield from self._answer_batch(batch, explain)

    def _answer_batch(self, batch: Sequence[Prepared | Failure], explain: bool) -> Iterator[Prediction | Failure]:
        predictions = self._infer([result for result in batch if isinstance(result, Prepared)], explain=explain)
        for result in batch:
            yield next(predictions) if isinstance(result, Prepared) else result

    def _infer(
        self, prepared: Sequence[Prepared], *, explain: bool, check: Callable[[], None] | None = None
    ) -> Iterator[Prediction]:
        batch = np.stack([scan.frame.pixels for scan in prepared])
        distribution = self._distribution_check
        start = perf_counter()
        outputs = self._run(batch, self._offered(FEATURES) if distribution else [])
        infer_ms = (perf_counter() - start) * 1e3 / len(prepared)
        manifest = self.bundle.manifest
        unlike_training: list[tuple[ResultWarning, ...]] = [()] * len(prepared)
        if distribution and FEATURES in outputs:
            unlike_training = distribution.warnings_for(outputs[FEATURES])
        probabilities, chosen = self._decide(outputs)
        labels, model = manifest.labels, manifest.title
        sensitive = self._display_warnings([scan.frame for scan in prepared], probabilities)
        for scan, row, label_index, unlike, displayed in zip(
            prepared, probabilities.tolist(), chosen.tolist(), unlike_training, sensitive, strict=True
        ):
            explained = label_index if manifest.positive is None or len(labels) > 2 else manifest.positive
            yield Prediction(
                source=scan.frame.source,
                index=scan.frame.index,
                frames=scan.frame.count,
                label=labels[label_index],
                probabilities=dict(zip(labels, row, strict=True)),
                positive=manifest.positive_label,
                threshold=manifest.threshold,
                model=model,
                model_hash=self.artifact.sha256[:12],
                artifact=self.artifact.file,
                engine=self.engine.name,
                provider=self.engine.provider,
                tuned=self.tuned,
                latency_ms=Latency(scan.decode_ms, scan.resize_ms, infer_ms),
                warnings=self._warnings + scan.warnings + unlike + displayed,
                heatmap=self._explain(scan.frame.pixels, explained, check) if explain else None,
                hot_spot=self._hot_spot,
                explained=labels[explained] if explain else None,
                pixels=scan.original,
                metadata={key: value for key, value in scan.frame.metadata.items() if not key.startswith("_")},
            )

    def _decide(self, outputs: Outputs) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Return the probabilities of the bundle, and the index of the label that they give."""
        manifest = self.bundle.manifest
        probabilities = recalibrated(outputs[self.engine.outputs[0].name], manifest)
        return probabilities, decide(probabilities, manifest.positive, manifest.threshold)

    def _display_warnings(
        self, frames: Sequence[Frame], probabilities: NDArray[np.float32]
    ) -> list[tuple[ResultWarning, ...]]:
        """Return a warning for each frame whose answer changes with its window; see ``display_sensitivity``."""
        warnings: list[tuple[ResultWarning, ...]] = [()] * len(frames)
        manifest = self.bundle.manifest
        if manifest.positive is None or manifest.threshold is None or not any(frame.metadata for frame in frames):
            return warnings
        from .display_sensitivity import to_check, warning_for, with_percentiles

        positive, label = probabilities[:, manifest.positive].tolist(), manifest.labels[manifest.positive]
        inputs = {
            index: with_percentiles(frames[index], self.reading, manifest.preprocessing)
            for index in to_check(frames, positive, manifest.threshold)
        }
        readable = {index: pixels for index, pixels in inputs.items() if pixels is not None}
        if readable:
            outputs = self._run(np.stack(list(readable.values())), [])
            others = recalibrated(outputs[self.engine.outputs[0].name], manifest)[:, manifest.positive].tolist()
            for index, other in zip(readable, others, strict=True):
                warnings[index] = warning_for(label, positive[index], other, manifest.threshold)
        return warnings

    def _run(self, batch: Pixels, names: Sequence[str]) -> Outputs:
        """Run the engine; return the probabilities, which are checked, and the outputs of these names."""
        if self._closed:
            raise _closed()
        if is_inherited(self.engine) and self._options is not None:
            self._open_again(self._options)
        first = self.engine.outputs[0].name
        try:
            outputs = self.engine.run_outputs(batch, [first, *names])
        except EngineError as error:
            if self._closed:  # by another thread, since the check above
                raise _closed() from error
            raise
        if not np.isfinite(outputs[first]).all():
            raise EngineError(
                f"{self.artifact.file}: returns probabilities that are not finite in {self.engine.name} "
                f"({self.engine.provider})",
                "Use another --engine, or --provider cpu; 'mri-edge verify' replays known scans there",
            )
        return outputs

    def _offered(self, *names: str) -> list[str]:
        """Return those of these outputs that the artifact has."""
        return [output.name for output in self.engine.outputs if output.name in names]

    def _explain(self, pixels: Pixels, label: int, check: Callable[[], None] | None) -> NDArray[np.float32]:
        """Explain one scan: float32 (h, w), in log-odds that the artifact gives, before a recalibration."""
        from .explanation import explain, log_odds_of

        names = self._offered(CONTRIBUTIONS, EXPLAINED)

        def log_odds(batch: Pixels) -> NDArray[np.float64]:
            if check is not None:
                check()
            return log_odds_of(self._run(batch, [])[self.engine.outputs[0].name], label)

        def contributions(batch: Pixels) -> NDArray[np.float32] | None:
            outputs = self._run(batch, names)
            about_label = EXPLAINED not in names or (outputs[EXPLAINED] == label).all()
            return outputs[CONTRIBUTIONS] if about_label else None

        return explain(pixels, log_odds, contributions if CONTRIBUTIONS in names else None)

    def _open_again(self, run: RunOptions) -> None:
        """In a forked child, open the same artifact in the same engine. The same provider must start."""
        with self._locks.setdefault(os.getpid(), Lock()):
            inherited = self.engine
            if not is_inherited(inherited):  # another thread has opened it in the meantime
                return
            threads = min(inherited.threads, available_cpus())  # a worker may have fewer cores
            same = replace(run, artifact=self.artifact.file, engine=inherited.name, threads=threads)
            engine = PendingModel(self.bundle, same).wait().engine
            if engine.provider != inherited.provider:
                engine.close()
                raise EngineError(
                    f"{self.artifact.file}: the parent process runs it on {inherited.provider}, but in this process "
                    f"{engine.provider} started",
                    "Load the classifier after the fork",
                )
            self.engine = engine


def _prepare_ahead(
    pool: ThreadPoolExecutor,
    sources: Sequence[Source | InputError],
    preprocessing: Preprocessing,
    reading: ReadOptions,
    *,
    keep_pixels: bool,
) -> Iterator[Prepared | Failure | None]:
    """Do as ``prepare_in_pieces`` in a thread of the pool, which begins at once and stays one piece ahead."""
    pieces = prepare_in_pieces(sources, preprocessing, reading, keep_pixels=keep_pixels)

    def results(future: Future[list[Prepared | Failure | None] | None]) -> Iterator[Prepared | Failure | None]:
        while (piece := future.result()) is not None:
            future = pool.submit(next, pieces, None)
            yield from piece

    return results(pool.submit(next, pieces, None))


def _in_turn(parts: Sequence[Iterator[Prepared | Failure | None]], scans: int) -> Iterator[Prepared | Failure]:
    """Yield the results of one scan of each part in turn. None ends a scan."""
    for part in islice(cycle(parts), scans):
        while (result := next(part)) is not None:
            yield result


def _closed() -> UsageError:
    return UsageError("this classifier is closed", "Load it again")


def _is_one_scan(sources: object) -> bool:
    """Return whether these are one scan. An array of more dimensions than a picture has is many pictures."""
    if isinstance(sources, np.ndarray):
        return sources.ndim == 2 or (sources.ndim == 3 and sources.shape[2] in (1, 3, 4))
    from PIL import Image

    return isinstance(sources, str | bytes | os.PathLike | Image.Image)


def _series_path(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if isinstance(path, str):
            return path
    raise UsageError(
        f"predict_series takes paths. Received: {type(source).__name__}",
        "Save the scan as a file, or call predict for single slices",
    )


def _unpickle(
    kind: type[Classifier],
    run: RunOptions,
    model: str | os.PathLike[str] | Bundle,
    require_signature: str | os.PathLike[str] | None,
) -> Classifier:
    return kind.load_with(run, model, require_signature=require_signature)
