"""The ``mri-edge`` command: the table of commands, and the only place where errors become exit codes."""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from mri_edge.commands.progress import is_colorless
from mri_edge.commands.usage import Group, explain
from mri_edge.device.native import paused_collection

from .errors import DISK_ERRORS, MriEdgeError, OutputError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name -> (module, attribute, line in --help). These are strings, so that `mri-edge --help` imports no command, and the
# runtime never imports the packages `train` and `export`.
COMMANDS = {
    "predict": ("mri_edge.commands.predict", "predict", "Classify scans with an exported model."),
    "watch": ("mri_edge.commands.services.watch", "watch", "Classify each scan that arrives in a folder."),
    "serve": ("mri_edge.commands.services.serve", "serve", "Classify scans that arrive over HTTP."),
    "node": (
        "mri_edge.commands.services.node",
        "node",
        "Receive series by DICOM, and send reports to an archive (PACS).",
    ),
    "archive": (
        "mri_edge.commands.services.archive",
        "archive",
        "Classify an archive of scans into a Parquet data set, on this machine or on a cluster.",
    ),
    "inspect": ("mri_edge.commands.scans.inspect", "inspect", "Show the series that scans belong to."),
    "render": ("mri_edge.commands.scans.render", "render", "Write what the network sees of a scan as a picture."),
    "info": ("mri_edge.commands.info", "info", "Show the contents of a model bundle."),
    "bundle": (
        "mri_edge.commands.bundle",
        "bundle",
        "Prepare a bundle for a device and deliver it: slim, record, sign, pack, unpack.",
    ),
    "verify": (
        "mri_edge.commands.verify",
        "verify",
        "Check a bundle's hashes, and replay its golden values on this device's CPU.",
    ),
    "tune": (
        "mri_edge.commands.tune",
        "tune",
        "Find the fastest way to run a model on this device, and save it for predict.",
    ),
    "bench": (
        "mri_edge.commands.bench",
        "bench",
        "Measure every artifact in every engine, each in its own process.",
    ),
    "warmup": ("mri_edge.commands.warmup", "warmup", "Build and cache what a provider needs before the first scan."),
    "doctor": ("mri_edge.commands.doctor", "doctor", "Show which engines and providers work on this machine."),
    "completion": (
        "mri_edge.commands.completion",
        "completion",
        "Print the script that completes commands in a shell.",
    ),
    "train": ("mri_edge.train.cli.train", "train", "Train a model from a folder of scans and write it as a bundle."),
    "export": (
        "mri_edge.export.command",
        "export",
        "Convert a trained bundle to ONNX and TFLite, and check each artifact.",
    ),
    "evaluate": (
        "mri_edge.train.cli.evaluate",
        "evaluate",
        "Score a model on labelled scans: figures with intervals, mistakes by file.",
    ),
    "recalibrate": (
        "mri_edge.train.cli.recalibrate",
        "recalibrate",
        "Adapt a model to your own labelled scans: a new bundle, with figures to expect and their intervals.",
    ),
}

EPILOG = """\b
Exit codes:
  0  success
  1  some inputs failed; the others are reported
  2  wrong usage
  3  model or bundle
  4  engine or provider
  5  a gate was not met: accuracy or speed
  6  the output cannot be written
  130  interrupted (Ctrl-C)
  141  the reader of the output has ended (| head)

\b
Defaults for options: mri-edge.toml in the current folder, or [tool.mri-edge] in its pyproject.toml.
For example, with the options of predict:
  [predict]
  model = "bundles/ours"
  threads = 2

Research use only: not a medical device.
"""


@contextmanager
def _exit_when_reader_ends() -> Iterator[None]:
    """Exit silently with 141, as other programs do, when the program that reads the output has ended."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        # rich turns a BrokenPipeError into a SystemExit with code 1.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        from mri_edge.storage.atomic import discard_stdout

        discard_stdout()
        raise click.exceptions.Exit(141) from error  # 128 + SIGPIPE, as in shells


class _CommandTable(Group):
    """A group that imports a command only when it runs."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Parse the arguments; this prints the output of --help and --version."""
        with _exit_when_reader_ends():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _exit_when_reader_ends():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        with paused_collection():
            command: click.Command = getattr(import_module(module), attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table: importing every command would take a second at each key press."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=line) for name, (*_, line) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


def _show_versions(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from mri_edge.inference.tuned_profile import library_versions

    for name, version in library_versions().items():
        click.echo(f"{name} {version}")
    ctx.exit()


@click.group(
    cls=_CommandTable,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of mri-edge and of its engines.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Edge-deployable inference for brain-MRI tumour classification.

    \b
        mri-edge predict scan.jpg                 classify one scan
        mri-edge train scans/                     train a model of your own
        mri-edge export --quantize                convert it to ONNX and TFLite
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif os.path.exists("mri-edge.toml") or os.path.exists("pyproject.toml"):
        from .defaults import apply_defaults

        apply_defaults(cast(click.Group, ctx.command), ctx, ctx.invoked_subcommand)


def main(arguments: list[str] | None = None) -> None:
    """Run a command, and exit with its code."""
    # NumPy's matrix products are small here, and threads of OpenBLAS keep their cores busy while they wait for each
    # other: a heatmap took six times the CPU time. OpenBLAS reads this when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _fill_closed_streams()
    _exit(run(arguments))


def _exit(code: int) -> NoReturn:
    """Exit with a code. The system frees the memory, because Python would take 10 ms to free each object.

    What is registered to run at exit still runs, and the output is written. If it cannot be, or if another thread or a
    profiler still runs, Python ends as usual.
    """
    if threading.active_count() == 1 and not _is_profiled():
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(code)
    sys.exit(code)


def _is_profiled() -> bool:
    """Whether a profiler, such as cProfile, is to write what it measured when the program returns."""
    monitoring: Any = getattr(sys, "monitoring", None)  # used by cProfile since Python 3.12
    return sys.getprofile() is not None or bool(monitoring and monitoring.get_tool(monitoring.PROFILER_ID))


def _fill_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file that the program opens would get the descriptor of such a stream, and messages of libraries
    would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 (it stays open)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Bugs keep their traceback."""
    if sys.stdout is None:
        click.echo("mri-edge: error: standard output is closed. Write it to a file or to /dev/null", err=True)
        return OutputError.exit_code
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape characters that its encoding lacks, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # click returns None for a command that returns no exit code.
        code: Any = cli.main(
            arguments, prog_name="mri-edge", standalone_mode=False, color=False if is_colorless() else None
        )
        return int(code or 0)
    except MriEdgeError as error:
        click.echo(f"mri-edge: error: {printable(str(error))}", err=True)
        return error.exit_code
    except OSError as error:
        if error.filename is not None or error.errno not in {*DISK_ERRORS, errno.EBADF}:
            raise
        from mri_edge.storage.atomic import discard_stdout

        discard_stdout()  # errors of other files have a file name, so this one concerns standard output
        click.echo(
            f"mri-edge: error: cannot write the output ({error.strerror}). Free some space and run again", err=True
        )
        return OutputError.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "mri-edge"
        message = printable(explain(error).rstrip("."))
        click.echo(f"mri-edge: error: {message}{'' if message.endswith('?') else '.'} See '{path} --help'", err=True)
        return error.exit_code
    except click.Abort as error:  # its message, if any, says how to continue
        click.echo(f"mri-edge: interrupted{f'. {error}' if str(error) else ''}", err=True)
        return 130  # 128 + SIGINT, as in shells
