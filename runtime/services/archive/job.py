"""Run an archive: list the inputs, classify them with Ray Data, and continue where an earlier run has ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge import __version__
from mri_edge.bundles.bundle import Bundle
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.score import required_score
from mri_edge.inference.selection import RunOptions, select
from mri_edge.inference.series import Plane
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import clear_leftovers, make_folder
from mri_edge.storage.lock import locked

from .cluster import SHORT_CPUS, WORK_CPUS, Resources, cluster, import_ray
from .failures import output_errors
from .progress import progress
from .record import FOLDERS, INPUTS, RunRecord, begun_run
from .units import is_remote

_PER_PART = 512  # scans of a part of the list
_FOLDERS_PER_PART = 4
_VOLUMES_PER_PART = 4  # a volume has hundreds of slices
_VOLUME = (".nii", ".nii.gz")
# Parts of a task, if each core gets several tasks: Ray takes as much CPU time for a task as a network for ten scans. At
# a kill, at most the scans of a task and those of a file of results are read again.
_MOST_PARTS = 4
_TASKS_PER_CORE = 8
_PER_FILE = 4096  # rows of a file of results, at least
_SERIES_PER_FILE = 64  # a series, or a slice with a heatmap, takes hundreds of times as long as a slice
_BLOCK_BYTES = 32 << 20
_CORES_PER_SHORT = 16
_GPU_PROVIDERS = ("gpu", "cuda", "tensorrt")
_ON_GPU = ("CUDA", "Tensorrt")  # how the names of the providers of ONNX Runtime begin

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """What to classify, and how. ``per_part`` and ``per_file`` are sizes that a user has no reason to change.

    Attributes
    ----------
    sources
        See ``sources.find_units``.
    out
        Folder of the results. All nodes must see it under this path.
    address
        Of a cluster of Ray; None: this machine.
    batch
        Scans per run of the model; None: as the model is tuned.
    folder
        To which relative paths refer.
    """

    sources: tuple[str, ...]
    out: Path
    model: str
    run: RunOptions
    by: str = "slice"
    plane: Plane = "axial"
    heatmap: bool = False
    batch: int | None = None
    address: str | None = None
    signed_by: str | None = None
    folder: Path = field(default_factory=Path.cwd)
    per_part: int = _PER_PART
    per_file: int = _PER_FILE


def run_archive(archive: Archive, notify: Notify) -> dict[str, Any]:
    """Classify an archive, or the part of it that has no results yet, and return what ``summary.json`` contains.

    Raises
    ------
    UsageError
        The folder belongs to a run with other options, another program uses it, or a source is none.
    OutputError
        The results cannot be written.
    BundleError, EngineError
        The model cannot run here or on a worker, or Ray is not installed.
    """
    start = perf_counter()
    import_ray(archive.address)
    out = Path(os.path.abspath(archive.out))
    bundle = Bundle.open(archive.model, signed_by=archive.signed_by)
    run, on_gpu = _settled(bundle, archive)
    archive = replace(archive, out=out, run=run)
    record = _record(archive, bundle)
    make_folder(out)
    with locked(out) as is_locked:
        if not is_locked:
            notify(f"{out}: this file system has no locks; make sure that no other run uses the folder")
        clear_leftovers(out)
        begun = begun_run(out, record)
        if begun:  # the same words may name other scans now, as "-" does
            notify(
                f"continuing with the list of {begun.inputs or 0:,} inputs of {out}: the sources are not listed again"
            )
        record = begun or _listed(archive, record, notify)
        from .sink import finished_inputs
        from .summary import write_summary

        assert record.inputs is not None  # noqa: S101 (the list is complete)
        finished = finished_inputs(out)
        if len(finished) < record.inputs:
            with cluster(archive.address) as resources, output_errors(out):
                if begun is None and record.by == "series":
                    record = _joined(archive, record, resources.cpus, notify)
                processes = _processes(archive, resources, on_gpu=on_gpu)
                _run(archive, bundle.manifest.preprocessing, record, finished, processes, notify)
        assert record.inputs is not None  # noqa: S101 (the list is complete)
        return write_summary(out, record, perf_counter() - start, record.inputs - len(finished))


def _settled(bundle: Bundle, archive: Archive) -> tuple[RunOptions, bool]:
    """Choose the artifact and the engine here, and open the model once, before a process is started for it.

    Other nodes might choose otherwise by their processors, and then a row would depend on where it was made. Returns
    the options, and whether the model runs on GPUs: one that only other nodes have must be named.
    """
    selection = select(bundle, archive.run)
    run = replace(archive.run, artifact=selection.artifact.file, engine=selection.engine)
    if archive.address is not None and run.provider in _GPU_PROVIDERS:
        return run, True
    with Classifier.load_with(run, bundle) as classifier:
        if archive.heatmap:
            required_score(classifier)
        return run, classifier.engine.provider.startswith(_ON_GPU)


@dataclass(frozen=True)
class _Processes:
    """How many processes classify, what each takes of a node, with how many threads, and how many read for them.

    Attributes
    ----------
    read
        None if the processes that classify also read. For GPUs, all cores read.
    short
        How many processes read the list of inputs, and how many write: these take a hundredth of the time.
    """

    classify: int
    classify_resources: dict[str, float]
    threads: int | None
    read: int | None
    short: int


def _processes(archive: Archive, resources: Resources, *, on_gpu: bool) -> _Processes:
    """Return a classifier for each GPU and readers on all cores or, without GPUs, a classifier that reads on each."""
    short = -(-resources.cpus // _CORES_PER_SHORT)
    if on_gpu and resources.gpus:
        return _Processes(resources.gpus, {"num_gpus": 1}, archive.run.threads, resources.cpus, short)
    return _Processes(resources.cpus, {"num_cpus": WORK_CPUS}, archive.run.threads or 1, None, short)


def _record(archive: Archive, bundle: Bundle) -> RunRecord:
    run = archive.run
    assert run.artifact is not None  # noqa: S101 (it is settled)
    assert run.engine is not None  # noqa: S101 (it is settled)
    return RunRecord(
        sources=archive.sources,
        by=archive.by,
        model=bundle.manifest.title,
        sha256=bundle.artifact(run.artifact).sha256,
        artifact=run.artifact,
        engine=run.engine,
        provider=run.provider,
        allow_fallback=run.allow_fallback,
        window=run.reading.window_name,
        any_modality=run.reading.any_modality,
        plane=archive.plane,
        heatmap=archive.heatmap,
        version=__version__,
        folder="" if all(map(_is_absolute, archive.sources)) else str(archive.folder),
        per_part=archive.per_part if archive.by == "slice" and not archive.heatmap else _FOLDERS_PER_PART,
    )


def _is_absolute(source: str) -> bool:
    """Whether a source means the same in every working folder. The paths in a list (``@FILE``) may be relative."""
    return is_remote(source) or Path(source).is_absolute()


def _listed(archive: Archive, record: RunRecord, notify: Notify) -> RunRecord:
    """List the inputs, and return the record of the run with their number."""
    _warn_of_missing_readers(notify)
    from .inputs import write_inputs
    from .sources import find_units

    with output_errors(archive.out):
        units = find_units(archive.sources, by=archive.by, notify=notify)
        first = list(islice(units, record.per_part))
        if any(member.path.lower().endswith(_VOLUME) for unit in first for member in unit.members):
            record = replace(record, per_part=min(record.per_part, _VOLUMES_PER_PART))
        folder = archive.out / (INPUTS if archive.by == "slice" else FOLDERS)
        record = replace(record, inputs=write_inputs(chain(first, units), folder, record.per_part))
    if record.by == "slice" or not record.inputs:  # series may lie in several folders: see ``_joined``
        record.write(archive.out)
    notify(f"listed: {record.inputs:,} {'scans' if record.by == 'slice' else 'folders'}")
    return record


def _joined(archive: Archive, record: RunRecord, cpus: int, notify: Notify) -> RunRecord:
    """Write the list of inputs from that of the folders: folders that share a series are one input."""
    from .inputs import write_inputs
    from .joining import join, leaders, read_all, series_of_inputs

    assert record.inputs is not None  # noqa: S101 (they are listed)
    part = (archive.out / FOLDERS, record.inputs, record.per_part)
    above = leaders(series_of_inputs(*part, archive.folder, archive.run.reading, cpus, notify))
    units = join(read_all(*part), read_all(*part), above)
    inputs = write_inputs(units, archive.out / INPUTS, record.per_part)
    joined = replace(record, inputs=inputs)
    joined.write(archive.out)
    shutil.rmtree(archive.out / FOLDERS, ignore_errors=True)
    if above:
        folders = "folder" if len(above) == 1 else "folders"
        notify(f"joined: {len(above):,} {folders} with others that hold the same series")
    return joined


def _warn_of_missing_readers(notify: Notify) -> None:
    """Warn before the run: scans that cannot be read get a row, and a continued run does not read them again."""
    for module, kind in (("pydicom", "DICOM"), ("nibabel", "NIfTI")):
        if find_spec(module) is None:
            install = f"pip install 'mri-edge[{kind.lower()}]'"
            notify(f"{module} is not installed, so every {kind} file gets a row that says so. To read them: {install}")


def _run(
    archive: Archive,
    preprocessing: Preprocessing,
    record: RunRecord,
    finished: NDArray[np.int64],
    processes: _Processes,
    notify: Notify,
) -> None:
    """Classify, and report the progress meanwhile."""
    from .guard import start_ledger

    ledger = start_ledger()
    assert record.inputs is not None  # noqa: S101 (the list is complete)
    with progress(ledger, record.inputs, len(finished), notify):
        if (archive.address or "").startswith("ray://"):  # Ray Data does not run in a client: run it on the cluster
            import ray

            task = ray.remote(num_cpus=0, max_retries=0)(_classify)
            ray.get(task.remote(archive, preprocessing, record, finished, processes, ledger))
        else:
            _classify(archive, preprocessing, record, finished, processes, ledger)


def _classify(
    archive: Archive,
    preprocessing: Preprocessing,
    record: RunRecord,
    finished: NDArray[np.int64],
    processes: _Processes,
    ledger: Any,
) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
    from ray.data.checkpoint import CheckpointConfig

    from .inputs import Inputs
    from .schema import INPUT, OUTCOME
    from .sink import CHECKPOINT, RESULTS, Continued
    from .stages import PER_BLOCK, Classify, ClassifyWhole, ReadAndClassify, Work, read_scans

    work = Work(
        model=archive.model,
        signed_by=archive.signed_by,
        run=replace(archive.run, threads=processes.threads),
        title=record.model,
        sha256=record.sha256,
        by=archive.by,
        plane=archive.plane,
        batch=archive.batch,
        folder=archive.folder,
        out=archive.out if archive.heatmap else None,
    )
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.memory_usage_poll_interval_s = None  # nothing uses these measurements
    whole = archive.by == "series" or archive.heatmap
    separate = processes.read is not None and not whole
    # Blocks of scans are bounded, and each scan is one row of them. The rows of results that a scan or a folder gets
    # must stay together, because the checkpoint knows only inputs; those of a block of scans are far below the bound.
    context.target_max_block_size = _BLOCK_BYTES if separate else None
    context.checkpoint_config = CheckpointConfig(
        INPUT,
        str(archive.out / CHECKPOINT),
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=Continued,
    )

    assert record.inputs is not None  # noqa: S101 (the list is complete)
    parts = record.inputs // (record.per_part * processes.classify * _TASKS_PER_CORE)
    parts = 1 if whole else max(1, min(_MOST_PARTS, parts))
    inputs = Inputs(archive.out / INPUTS, record.inputs, record.per_part, parts, finished)
    data = ray.data.read_datasource(
        inputs,
        override_num_blocks=inputs.tasks,
        concurrency=processes.short,
        ray_remote_args={"num_cpus": SHORT_CPUS, "max_retries": -1},
    )
    if separate:
        data = data.map_batches(
            read_scans,
            fn_args=(work, preprocessing, ledger),
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=processes.read),
            num_cpus=WORK_CPUS,
            max_retries=-1,
        )
    data = data.map_batches(
        ClassifyWhole if whole else Classify if separate else ReadAndClassify,
        fn_constructor_args=(work, ledger),
        # Blocks as they are. For GPUs, Ray wants a number.
        batch_size=(PER_BLOCK if separate else record.per_part) if "num_gpus" in processes.classify_resources else None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=processes.classify),
        **processes.classify_resources,
    )
    with output_errors(archive.out):
        data.write_parquet(
            str(archive.out / RESULTS),
            partition_cols=[OUTCOME],
            min_rows_per_file=_SERIES_PER_FILE if whole else archive.per_file,
            concurrency=processes.short,
            ray_remote_args={"num_cpus": SHORT_CPUS},
        )
