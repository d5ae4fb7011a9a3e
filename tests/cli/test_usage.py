"""Usage errors are explained at once, and output has no color codes where they are unwanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mri_edge.cli import COMMANDS, cli, run

PROGRAM = Path(sys.executable).with_name("mri-edge")
EXAMPLES = Path(__file__).parents[2] / "examples"


def _usage_error(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run([*arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["predcit"], "Did you mean 'predict'?"),
        (["Predict"], "Did you mean 'predict'?"),
        (["evalute"], "Did you mean 'evaluate'?"),
        (["bundle", "pakc"], "Did you mean 'pack' or 'unpack'?"),
        (["bundle", "verify"], "'verify-signature'"),
        (["predict", "--heatmp", "x"], "--heatmap"),
        (["watch", "in", "--setle", "1"], "--settle"),
        ([str(EXAMPLES)], f"Did you mean 'mri-edge predict {EXAMPLES}'?"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_typo_gets_a_suggestion(arguments, meant, capfd):
    assert meant in _usage_error(capfd, *arguments)


def test_a_name_unlike_any_other_gets_no_suggestion(capfd):
    assert "mean" not in _usage_error(capfd, "zzz")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["watch"], ["IN", "--out"]),
        (["watch", "in"], ["--out"]),
        (["watch", "--once", "--settle", "0"], ["IN", "--out"]),
        (["watch", "--out", "out"], ["IN"]),
        (["bundle", "slim"], ["BUNDLE", "--artifact", "--out"]),
        (["bundle", "slim", "--artifact", "int8.onnx"], ["BUNDLE", "--out"]),
        (["bundle", "sign"], ["BUNDLE", "--key"]),
        (["completion"], ["bash"]),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_everything_that_is_missing_is_reported_at_once(arguments, missing, capfd):
    said = _usage_error(capfd, *arguments)
    assert said.count("Missing") == 1
    options = [word for word in ("IN", "BUNDLE", "--out", "--artifact", "--key", "bash") if f"'{word}" in said]
    assert [word for word in missing if word not in said] == []
    assert set(options) <= set(missing)


def test_options_set_in_the_environment_are_not_missing(tmp_path, monkeypatch, capfd):
    import click

    from mri_edge.commands.usage import explain

    @click.command()
    @click.option("--first", required=True)
    @click.option("--second", required=True, envvar="SECOND")
    @click.option("--third", required=True)
    def command(first: str, second: str, third: str) -> None:
        """Require three options."""

    def message() -> str:
        with pytest.raises(click.MissingParameter) as caught:
            command.main([], standalone_mode=False)
        return explain(caught.value)

    assert message() == "Missing option '--first', option '--second' and option '--third'"
    monkeypatch.setenv("SECOND", "2")
    assert message() == "Missing option '--first' and option '--third'"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=str,
)
@pytest.mark.parametrize(
    "command", [["predict", str(EXAMPLES / "phantom-1.jpg")], ["info"], ["verify"]], ids=lambda words: words[0]
)
def test_output_has_no_color_if_none_is_wanted(command, environment, coloured):
    screen = _on_a_terminal(command, environment)
    assert (b"\x1b[" in screen) is coloured
    assert b"lite" in screen


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_dumb_terminal_gets_no_progress_bar():
    """The results go to a file, which is when other programs draw a progress bar."""
    command = ["predict", str(EXAMPLES / "phantom-*.jpg"), "--json"]
    assert b"predict" in _on_a_terminal(command, {}, out=subprocess.DEVNULL)
    assert _on_a_terminal(command, {"TERM": "dumb"}, out=subprocess.DEVNULL) == b""


@pytest.mark.parametrize(
    "module", ["mri_edge.cli", "click", "mri_edge.commands.usage", "mri_edge.commands.services.watch", "numpy"]
)
def test_ctrl_c_while_a_module_is_loaded_gives_no_traceback(module, tmp_path):
    program = f"""
import sys
class Interrupted:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted)
from mri_edge.__main__ import main
main()
"""
    command = [sys.executable, "-c", program, "watch", str(tmp_path), "--out", str(tmp_path / "out"), "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() in ("", "mri-edge: interrupted")


def test_the_program_starts_where_ctrl_c_is_handled():
    text = (EXAMPLES.parent / "pyproject.toml").read_text()
    assert '\nmri-edge = "mri_edge.__main__:main"\n' in text


def _numbers(name: str) -> list[click.Parameter]:
    """Return the parameters of a command that take a number with decimals."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    commands = [command, *getattr(command, "commands", {}).values()]
    parameters = [parameter for found in commands for parameter in found.params]
    return [parameter for parameter in parameters if isinstance(parameter.type, click.types.FloatParamType)]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_a_number_that_is_not_finite(name):
    for parameter in _numbers(name):
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(click.BadParameter):
                parameter.type.convert(value, parameter, None)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_a_time_of_more_than_a_day(name):
    """The system has no timers for centuries."""
    for parameter in _numbers(name):
        if parameter.metavar == "SECONDS" or "--seconds" in parameter.opts:
            assert parameter.type.convert("3600", parameter, None) == 3600
            for value in ("86401", "1e10", "1e300"):
                with pytest.raises(click.BadParameter):
                    parameter.type.convert(value, parameter, None)


def _on_a_terminal(command: list[str], environment: dict[str, str], out: int | None = None) -> bytes:
    """Return what a command writes to a terminal: stderr, and stdout too unless ``out`` is given."""
    screen, end = os.openpty()
    unset = {"NO_COLOR", "TERM", "FORCE_COLOR"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [PROGRAM, *command],
        stdout=end if out is None else out,
        stderr=end,
        env={**inherited, "TERM": "xterm-256color", **environment},
    )
    os.close(end)
    drawn = b""
    try:
        while piece := os.read(screen, 4096):
            drawn += piece
    except OSError:  # Linux reports the closed terminal as an error
        pass
    os.close(screen)
    assert process.wait() == 0, drawn
    return drawn


def test_without_a_terminal_long_work_reports_a_line_a_minute(monkeypatch, capsys):
    from mri_edge.commands import progress

    now = iter(range(0, 10_000, 25))  # each look at the clock is 25 seconds after the one before
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.track("abcdefgh", "explain", 8)) == list("abcdefgh")
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 8
    assert lines[0].startswith("explain  3 of 8  1:")
    assert " left" in lines[0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    assert list(progress.track("abc", "predict")) == list("abc")
    assert capsys.readouterr().err == ""
