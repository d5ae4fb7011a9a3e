"""Options that several commands share, so that they look and behave the same in each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.bundles.bundle import REQUIRE_SIGNATURE as _SIGNATURE_VARIABLE
from mri_edge.errors import UsageError, printable
from mri_edge.scans.options import ReadOptions

from .usage import RequiredUnlessModel

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mri_edge.inference.selection import RunOptions

Function = TypeVar("Function", bound=Callable[..., Any])


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete files and folders, then embedded models: when Bash reads the item for files, it drops earlier items."""
    from click.shell_completion import CompletionItem

    from mri_edge.bundles.bundle import embedded_models

    names = [CompletionItem(name) for name in embedded_models() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *names]


def _complete_artifacts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from mri_edge.bundles.bundle import Bundle
    from mri_edge.errors import MriEdgeError

    try:
        model = ctx.params.get("bundle") or ctx.params.get("model") or DEFAULT_MODEL
        artifacts = Bundle.open(model).manifest.artifacts
    except MriEdgeError:  # the command reports what is wrong with the bundle
        return []
    return [
        CompletionItem(artifact.file, help=artifact.precision)
        for artifact in artifacts
        if artifact.file.startswith(incomplete)
    ]


def _complete_engines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mri_edge.engines import offered

    return [name for name in offered() if name.startswith(incomplete)]


def _complete_providers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mri_edge.engines import PROVIDERS

    return [name for name in PROVIDERS if name.startswith(incomplete)]


class _StderrHandler(logging.Handler):
    """Writes log records to stderr in the form of the program's messages."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"mri-edge: {record.levelname.lower()}: {printable(record.getMessage())}", err=True)


def _set_up_logs(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:
    logger = logging.getLogger("mri_edge")
    logger.handlers = [_StderrHandler()]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


MODEL = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="BUNDLE",
    envvar="MRI_EDGE_MODEL",
    show_envvar=True,
    shell_complete=complete_models,
    help="Name of an embedded model, a bundle folder (./small if an embedded model has that name), or a packed bundle.",
)


def bundle_argument(function: Function) -> Function:
    """Add ``[BUNDLE]`` and ``--model``. The command gets one of them, or the default, as ``model``."""

    @click.argument("bundle", metavar="[BUNDLE]", required=False, shell_complete=complete_models)
    @MODEL
    @wraps(function)
    def with_bundle(*arguments: Any, bundle: str | None, model: str, **options: Any) -> Any:
        if bundle is not None and is_on_command_line("model"):
            raise _named_twice(bundle, model)
        return function(*arguments, model=model if bundle is None else bundle, **options)

    return cast(Function, with_bundle)


def required_bundle_argument(function: Function) -> Function:
    """Add ``BUNDLE`` and ``--model``, one of which is required, for commands that create or change a bundle."""

    @click.argument("bundle", cls=RequiredUnlessModel, metavar="BUNDLE", required=False, shell_complete=complete_models)
    @_MODEL_TO_CHANGE
    @wraps(function)
    def with_bundle(*arguments: Any, bundle: str | None, model: str | None, **options: Any) -> Any:
        if bundle is not None and model is not None:
            raise _named_twice(bundle, model)
        chosen = model if bundle is None else bundle
        if chosen is None:
            raise click.UsageError("Missing argument 'BUNDLE'")
        return function(*arguments, model=chosen, **options)

    return cast(Function, with_bundle)


def bundle_and_scans(function: Function) -> Function:
    """Add ``BUNDLE SCAN...`` and ``--model BUNDLE SCAN...``, one of which is required."""

    @click.argument("words", metavar="BUNDLE SCAN...", nargs=-1)
    @_MODEL_TO_CHANGE
    @wraps(function)
    def with_bundle(*arguments: Any, words: tuple[str, ...], model: str | None, **options: Any) -> Any:
        chosen, scans = (words[0] if words else None, words[1:]) if model is None else (model, words)
        if chosen is None or not scans:
            raise click.UsageError("Missing argument 'BUNDLE'" if chosen is None else "Missing argument 'SCAN...'")
        return function(*arguments, model=chosen, scans=tuple(map(Path, scans)), **options)

    return cast(Function, with_bundle)


def is_on_command_line(parameter: str) -> bool:
    """Whether the value of a parameter of the running command was typed, and is no default."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def refuse_typed(parameters: Collection[str], problem: str, hint: str) -> None:
    """Raise UsageError if one of these parameters of the running command was typed. Its name begins the message."""
    for parameter in click.get_current_context().command.params:
        if parameter.name in parameters and is_on_command_line(parameter.name):
            name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
            raise UsageError(f"{name.strip('[]')} {problem}", hint)


def _named_twice(bundle: str, model: str) -> UsageError:
    return UsageError(f"the bundle is named twice: {bundle} and --model {model}", "Name it once")


_MODEL_TO_CHANGE = click.option(
    "--model", metavar="BUNDLE", shell_complete=complete_models, help="The same as the argument BUNDLE."
)
ARTIFACT = click.option(
    "--artifact",
    "--artefact",  # the spelling of earlier versions
    "artifact",
    metavar="FILE",
    envvar=["MRI_EDGE_ARTIFACT", "MRI_EDGE_ARTEFACT"],
    show_envvar=True,
    shell_complete=_complete_artifacts,
    help="File of the bundle to run, for example model.int8.onnx.",
)
ENGINE = click.option(
    "--engine",
    metavar="NAME",
    envvar="MRI_EDGE_ENGINE",
    show_envvar=True,
    shell_complete=_complete_engines,
    help="onnxruntime (or onnx, ort), litert (or tflite), openvino, ncnn. Default: by the artifact.",
)
PROVIDER = click.option(
    "--provider",
    "--device",
    "provider",
    default="auto",
    show_default=True,
    metavar="NAME",
    envvar="MRI_EDGE_PROVIDER",
    show_envvar=True,
    shell_complete=_complete_providers,
    help="auto, cpu, gpu (the best available), cuda, tensorrt, openvino, coreml, directml. "
    "A named provider must start, or the command fails.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    envvar="MRI_EDGE_THREADS",
    show_envvar=True,
    help="At most the cores that this process may use. Default: as tuned, else 1 for a model below 1 MiB and all "
    "those cores for a larger model.",
)
ALLOW_FALLBACK = click.option(
    "--allow-fallback",
    is_flag=True,
    envvar="MRI_EDGE_ALLOW_FALLBACK",
    show_envvar=True,
    help="Run on the CPU if the named provider does not start, with a warning in every result.",
)
REQUIRE_SIGNATURE = click.option(
    "--require-signature",
    "signed_by",
    metavar="KEY",
    envvar=_SIGNATURE_VARIABLE,
    show_envvar=True,
    help="Use the bundle only if this public key (PEM file) verifies its signature and no file has changed since.",
)
BATCH = click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    envvar="MRI_EDGE_BATCH",
    show_envvar=True,
    help="Scans per run. Default: as tuned, else 8, or 64 for a model below 1 MiB.",
)
VERBOSE = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    envvar="MRI_EDGE_VERBOSE",
    show_envvar=True,
    expose_value=False,
    callback=_set_up_logs,
    help="Log on stderr which model runs on which provider, and how long opening took.",
)


ANY_MODALITY = click.option(
    "--any-modality",
    is_flag=True,
    envvar="MRI_EDGE_ANY_MODALITY",
    show_envvar=True,
    help="Read DICOM images that are not MR too. The models know only MR.",
)
WINDOW = click.option(
    "--window",
    default="file",
    show_default=True,
    metavar="file|auto|C,W",
    envvar="MRI_EDGE_WINDOW",
    show_envvar=True,
    help="For DICOM and NIfTI: the window in the file, percentiles of the values, or this center and width. "
    "Without a window in the file, or with one that shows nothing, percentiles are used.",
)


_RUN_FIELDS = ("artifact", "engine", "provider", "threads", "allow_fallback")


def port_option(default: int) -> Callable[[Function], Function]:
    """Return ``--port`` of a command that listens."""
    return click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help="Port to listen on; 0 is a free one, which is printed.",
    )


def run_options(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Add options that say how to run a model, then ``-v``; the command gets their values as ``run``, a RunOptions.

    Without arguments it adds all of them: ``--artifact --engine --provider --threads --allow-fallback``.
    """
    chosen = options or (ARTIFACT, ENGINE, PROVIDER, THREADS, ALLOW_FALLBACK)

    def decorate(function: Function) -> Function:
        @wraps(function)
        def with_run(*arguments: Any, **values: Any) -> Any:
            from mri_edge.inference.selection import RunOptions

            run = RunOptions(**{field: values.pop(field) for field in _RUN_FIELDS if field in values})
            return function(*arguments, run=run, **values)

        decorated = cast(Function, with_run)
        for option in reversed((*chosen, VERBOSE)):
            decorated = option(decorated)
        return decorated

    return decorate


def reading_options(function: Function) -> Function:
    """Add ``--window`` and ``--any-modality``. Their values become part of the command's ``run``, a RunOptions."""

    @WINDOW
    @ANY_MODALITY
    @wraps(function)
    def with_reading(*arguments: Any, window: str, any_modality: bool, run: RunOptions, **values: Any) -> Any:
        reading = ReadOptions(window, any_modality)
        return function(*arguments, run=replace(run, reading=reading), **values)

    return cast(Function, with_reading)


def model_options(function: Function) -> Function:
    """Add ``--model`` and all of ``run_options``: what runs, and how."""
    return MODEL(run_options()(function))
