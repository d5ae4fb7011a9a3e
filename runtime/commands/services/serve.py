"""``mri-edge serve``: answer over HTTP."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import click

from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.commands.options import REQUIRE_SIGNATURE, complete_models, port_option, reading_options, run_options
from mri_edge.commands.usage import NumberRange
from mri_edge.errors import UsageError, first_line
from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge serve
  mri-edge serve --model lite --model ./bundle --port 9000
  mri-edge serve --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem
  curl --data-binary @scan.jpg http://127.0.0.1:8000/v1/classify
"""

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Model(click.types.StringParamType):
    """A model. The environment variable names one, as for the other commands: click would split it at spaces."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the value of the variable as the only model."""
        return [rv]


@click.command(epilog=EXAMPLES)
@click.option(
    "--model",
    "models",
    type=_Model(),
    multiple=True,
    default=(DEFAULT_MODEL,),
    show_default=True,
    metavar="BUNDLE",
    envvar="MRI_EDGE_MODEL",
    show_envvar=True,
    shell_complete=complete_models,
    help="A model to serve, as for predict. Repeat it for several; /v1/classify uses the first one unless a request "
    "names another.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. One that other machines reach needs --token-file or --tls-cert.",
)
@port_option(8000)
@click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="File with a token that requests must send as 'Authorization: Bearer TOKEN'. Probes and the page need none.",
)
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain, PEM: the server speaks HTTPS.")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Private key of --tls-cert, PEM.")
@click.option(
    "--queue",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Requests in progress of one model. Further ones get status 429 at once.",
)
@click.option(
    "--max-wait",
    type=NumberRange(0, 10_000),
    default=0.0,
    show_default=True,
    metavar="MS",
    help="How long a request waits for others to complete a batch. With 0 a batch is what is waiting when the engine "
    "becomes free.",
)
@click.option(
    "--timeout",
    type=NumberRange(0.1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest time of a request. After it the answer is status 504, and what has not run yet never does.",
)
@click.option(
    "--max-upload",
    type=click.IntRange(1, 4096),
    default=256,
    show_default=True,
    metavar="MIB",
    help="Largest body of a request. The server holds at most twice as much at a time.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Form of the lines on stderr, one for each request.",
)
@REQUIRE_SIGNATURE
@run_options()
@reading_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    queue: int,
    max_wait: float,
    timeout: float,
    max_upload: int,
    log_format: Literal["text", "json"],
    signed_by: str | None,
    run: RunOptions,
) -> None:
    """Classify scans that arrive over HTTP.

    POST a scan to /v1/classify: a picture, DICOM, NIfTI, or a zip file of a series. The answer is the object that
    'predict --json' prints. Open Inference Protocol v2 is at /v2, a page for people at /, the routes at /docs.

    Nothing is stored. SIGTERM ends the server with exit code 0 after it has answered every request that it accepted.

    Research use only: not a medical device.
    """
    try:
        from mri_edge.services.http.app import create_app
        from mri_edge.services.http.limits import Limits
        from mri_edge.services.http.logs import Log
        from mri_edge.services.http.security import Guard, is_loopback, read_token
        from mri_edge.services.http.server import Address
        from mri_edge.services.http.server import serve as run_server
    except ImportError as error:
        raise UsageError(f"serve needs more packages ({first_line(error)})", "pip install 'mri-edge[serve]'") from error
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.inference.classifier import Classifier

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together", "Add the other one")
    if not is_loopback(host) and token_file is None and tls_cert is None:
        raise UsageError(
            f"--host {host}: other machines could reach the server", "Add --token-file, or --tls-cert and --tls-key"
        )
    token = None if token_file is None else read_token(token_file)
    limits = Limits(queue, max_upload << 20, timeout, max_wait / 1e3)
    bundles = [Bundle.open(model, signed_by=signed_by) for model in models]
    app = create_app(
        bundles,
        partial(Classifier.load_with, run),
        limits=limits,
        guard=Guard(token, local=token is None and is_loopback(host)),
        log=Log(log_format),
    )
    if run_server(app, Address(host, port, tls_cert, tls_key), limits):
        raise click.Abort
