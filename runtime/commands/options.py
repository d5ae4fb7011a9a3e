"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..bundle import DEFAULT_MODEL

Function = TypeVar("Function", bound=Callable[..., Any])


def model_options(function: Function) -> Function:
    """``--model --artefact --engine --provider --threads``: what runs, and where."""
    for option in reversed(
        [
            click.option(
                "--model",
                default=DEFAULT_MODEL,
                show_default=True,
                metavar="BUNDLE",
                help="Bundle folder, or name of an embedded model.",
            ),
            click.option("--artefact", metavar="FILE", help="File of the bundle to run, model.int8.onnx for instance."),
            click.option("--engine", metavar="NAME", help="onnxruntime, litert, openvino. Default: by the artefact."),
            click.option(
                "--provider",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="auto, cpu, cuda, tensorrt, openvino, coreml, directml. A named one comes up or it is an error.",
            ),
            click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use."),
        ]
    ):
        function = option(function)
    return function
