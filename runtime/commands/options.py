"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.bundles.bundle import REQUIRE_SIGNATURE as _VARIABLE
from mri_edge.errors import UsageError, printable

from .usage import OneOfTwo

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, then names of embedded models: Bash drops what it has read when it meets a file."""
    from click.shell_completion import CompletionItem

    from mri_edge.bundles.bundle import embedded_models

    names = [CompletionItem(name) for name in embedded_models() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *names]


def _complete_artefacts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from mri_edge.bundles.bundle import Bundle
    from mri_edge.errors import MriEdgeError

    try:
        named = ctx.params.get("bundle") or ctx.params.get("model") or DEFAULT_MODEL
        artefacts = Bundle.open(named).manifest.artefacts
    except MriEdgeError:  # the command itself will say what is wrong with the bundle
        return []
    return [CompletionItem(one.file, help=one.precision) for one in artefacts if one.file.startswith(incomplete)]


def _complete_engines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mri_edge.engines import offered

    return [name for name in offered() if name.startswith(incomplete)]


def _complete_providers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from mri_edge.engines import PROVIDERS

    return [name for name in PROVIDERS if name.startswith(incomplete)]


class _Lines(logging.Handler):
    """Log records as lines on stderr, in the words of the program's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"mri-edge: {record.levelname.lower()}: {printable(record.getMessage())}", err=True)


def _set_up_logs(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:
    logger = logging.getLogger("mri_edge")
    logger.handlers = [_Lines()]
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
    help="Name of an embedded model, a bundle folder (./small for one with such a name), or a packed bundle.",
)


def bundle_argument(function: Function) -> Function:
    """``[BUNDLE]`` by position or by ``--model``; the command's parameter ``model`` has a value in any case."""

    @click.argument("bundle", metavar="[BUNDLE]", required=False, shell_complete=complete_models)
    @MODEL
    @wraps(function)
    def with_bundle(*arguments: Any, bundle: str | None, model: str, **options: Any) -> Any:
        if bundle is not None and _is_typed("model"):
            raise _named_twice(bundle, model)
        return function(*arguments, model=model if bundle is None else bundle, **options)

    return cast(Function, with_bundle)


def required_bundle_argument(function: Function) -> Function:
    """``BUNDLE`` by position or by ``--model``, for commands that make or change one and so guess none."""

    @click.argument("bundle", cls=OneOfTwo, metavar="BUNDLE", required=False, shell_complete=complete_models)
    @_MODEL_TO_CHANGE
    @wraps(function)
    def with_bundle(*arguments: Any, bundle: str | None, model: str | None, **options: Any) -> Any:
        if bundle is not None and model is not None:
            raise _named_twice(bundle, model)
        named = model if bundle is None else bundle
        if named is None:
            raise click.UsageError("Missing argument 'BUNDLE'")
        return function(*arguments, model=named, **options)

    return cast(Function, with_bundle)


def bundle_and_scans(function: Function) -> Function:
    """``BUNDLE SCAN...``, or ``--model BUNDLE SCAN...``."""

    @click.argument("words", metavar="BUNDLE SCAN...", nargs=-1)
    @_MODEL_TO_CHANGE
    @wraps(function)
    def with_bundle(*arguments: Any, words: tuple[str, ...], model: str | None, **options: Any) -> Any:
        named, scans = (words[0] if words else None, words[1:]) if model is None else (model, words)
        if named is None or not scans:
            raise click.UsageError("Missing argument 'BUNDLE'" if named is None else "Missing argument 'SCAN...'")
        return function(*arguments, model=named, scans=tuple(map(Path, scans)), **options)

    return cast(Function, with_bundle)


def _is_typed(parameter: str) -> bool:
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def _named_twice(bundle: str, model: str) -> UsageError:
    return UsageError(f"the bundle is named twice: {bundle} and --model {model}", "Name it once")


_MODEL_TO_CHANGE = click.option(
    "--model", metavar="BUNDLE", shell_complete=complete_models, help="The same as BUNDLE by position."
)
ARTEFACT = click.option(
    "--artefact",
    metavar="FILE",
    envvar="MRI_EDGE_ARTEFACT",
    show_envvar=True,
    shell_complete=_complete_artefacts,
    help="File of the bundle to run, model.int8.onnx for instance.",
)
ENGINE = click.option(
    "--engine",
    metavar="NAME",
    envvar="MRI_EDGE_ENGINE",
    show_envvar=True,
    shell_complete=_complete_engines,
    help="onnxruntime (or onnx, ort), litert (or tflite), openvino. Default: by the artefact.",
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
    help="auto, cpu, gpu (the best there is), cuda, tensorrt, openvino, coreml, directml. "
    "A named one comes up or it is an error.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    envvar="MRI_EDGE_THREADS",
    show_envvar=True,
    help="At most the cores this process may use. Default: as tuned, else 1 for a model below 1 MiB, all those "
    "cores for a larger one.",
)
ALLOW_FALLBACK = click.option(
    "--allow-fallback",
    is_flag=True,
    envvar="MRI_EDGE_ALLOW_FALLBACK",
    show_envvar=True,
    help="Run on the CPU when the named provider does not come up, with a warning in every result.",
)
REQUIRE_SIGNATURE = click.option(
    "--require-signature",
    "signed_by",
    metavar="KEY",
    envvar=_VARIABLE,
    show_envvar=True,
    help="Take the bundle only if the owner of this public key (PEM file) signed it and every file is as it was then.",
)
VERBOSE = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    envvar="MRI_EDGE_VERBOSE",
    show_envvar=True,
    expose_value=False,
    callback=_set_up_logs,
    help="Say on stderr what runs, on what, and how long opening took.",
)


def running_options(function: Function) -> Function:
    """``--artefact --engine --provider --threads --allow-fallback -v``: how the bundle runs."""
    for option in reversed((ARTEFACT, ENGINE, PROVIDER, THREADS, ALLOW_FALLBACK, VERBOSE)):
        function = option(function)
    return function


def model_options(function: Function) -> Function:
    """``--model`` and ``running_options``: what runs, and how."""
    return MODEL(running_options(function))
