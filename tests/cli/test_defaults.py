"""Defaults for options from mri-edge.toml or pyproject.toml in the current folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mri_edge.cli import run
from mri_edge.commands import doctor

SCAN = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, file: str = "mri-edge.toml") -> None:
    Path(file).write_text(text, encoding="utf-8")


def test_the_file_sets_an_option_and_is_named_on_stderr(capfd):
    write('[info]\njson = true\n[predict]\nmodel = "none"\n')
    assert run(["info"]) == 0
    printed, messages = capfd.readouterr()
    assert json.loads(printed)["labels"]
    assert messages == "mri-edge: defaults from mri-edge.toml: json=True\n"


def test_pyproject_has_a_table_for_the_same(capfd):
    write('[project]\nname = "mri-edge-site"\n[tool.mri-edge.info]\njson = true\n', "pyproject.toml")
    assert run(["info"]) == 0
    assert capfd.readouterr().err == "mri-edge: defaults from pyproject.toml: json=True\n"
    write("[predict]\nthreads = 1\n")
    assert run(["info"]) == 0  # mri-edge.toml is read instead
    printed, messages = capfd.readouterr()
    assert (printed[0] != "{", messages) == (True, "")


@pytest.mark.parametrize(
    "text", ["[tool.ruff]\nline-length = 9\n", '[project]\nname = "mri-edge"\n', "no TOML\n", 'tool = "mri-edge"\n']
)
def test_a_pyproject_without_our_table_is_ignored(text, capfd):
    write(text, "pyproject.toml")
    assert run(["info"]) == 0
    assert capfd.readouterr().err == ""


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(monkeypatch, capfd):
    write('[predict]\nmodel = "from-file"\n')
    assert run(["predict", str(SCAN)]) == 3
    assert "from-file" in capfd.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("MRI_EDGE_MODEL", "from-environment")
    assert run(["predict", str(SCAN)]) == 3
    assert "from-environment" in capfd.readouterr().err.splitlines()[-1]
    assert run(["predict", str(SCAN), "--model", "from-command-line"]) == 3
    assert "from-command-line" in capfd.readouterr().err.splitlines()[-1]


def test_one_of_several_switches_can_be_chosen(capfd):
    write("[predict]\njson = true\n")
    assert run(["predict", str(SCAN)]) == 0
    assert json.loads(capfd.readouterr().out)["label"]
    assert run(["predict", str(SCAN), "--csv"]) == 0
    assert capfd.readouterr().out.startswith("file,")
    write("[predict]\njson = false\n")
    assert run(["predict", str(SCAN)]) == 0
    assert capfd.readouterr().out[0] != "{"


def test_help_shows_the_default_of_the_file(capfd):
    write('[predict]\nmodel = "ours"\n')
    assert run(["predict", "--help"]) == 0
    printed, messages = capfd.readouterr()
    assert "default: ours" in printed
    assert "model='ours'" in messages


def test_commands_of_a_group_have_tables_of_their_own(capfd):
    write('[bundle.slim]\nartifact = ["model.int8.onnx"]\nname = "site"\n')
    assert run(["bundle", "slim", "none", "--out", "new"]) == 3
    line = capfd.readouterr().err.splitlines()[0]
    assert line == "mri-edge: defaults from mri-edge.toml: slim.artifact=['model.int8.onnx'], slim.name='site'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[predcit]\n", "mri-edge.toml: predcit: no such command. Commands: predict"),
        ("threads = 2\n", "mri-edge.toml: threads: must be in the table of a command. For example: [predict] threads"),
        ("[info]\nthread = 2\n", "mri-edge.toml: info.thread: no such option. Options: model"),
        ("[info]\njson = 1\n", "mri-edge.toml: info.json: must be true or false. Received: 1"),
        ("[info]\nmodel = 3\n", "mri-edge.toml: info.model: must be a text. Received: 3"),
        ("[info]\nmodel = ['a']\n", "mri-edge.toml: info.model: must be a text. Received: ['a']"),
        ("info = 3\n", "mri-edge.toml: info: must be in the table of a command"),
        ("[info\n", "mri-edge.toml: is not valid TOML"),
        ("[info]\nmodel = 'a'\nmodel = 'b'\n", "mri-edge.toml: is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_reported_with_file_and_key(text, message, capfd):
    write(text)
    assert run(["info"]) == 2
    printed, messages = capfd.readouterr()
    assert printed == ""
    assert messages.startswith(f"mri-edge: error: {message}")
    assert len(messages.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("predict", "threads = true", "predict.threads: must be a whole number. Received: True"),
        ("predict", "threads = 0", "predict.threads: 0 is not in the range x>=1"),
        ("predict", "threads = 1.5", "predict.threads: must be a whole number. Received: 1.5"),
        ("predict", "json = true\ncsv = true", "predict.csv: sets the same as another key of the file"),
        ("tune", "batch = 2", "tune.batch: must be a list, each part a whole number. Received: 2"),
        ("tune", "batch = ['a']", "tune.batch: must be a list, each part a whole number. Received: ['a']"),
        ("watch", "every = 'often'", "watch.every: must be a number. Received: 'often'"),
        ("bench", "profile = 'slow'", "bench.profile: 'slow' is not one of"),
        ("bundle", "json = true", "bundle.json: no such command. Commands: "),
        ("bundle", "slim = true", "bundle.slim: must be a table. Received: True"),
        ("bundle", "slim.model = 'a'", "bundle.slim.model: only the command line can set this option"),
        ("bundle", "slim.overwrite = true", "bundle.slim.overwrite: only the command line can set this option"),
    ],
)
def test_each_value_is_checked_before_the_command_runs(command, text, message, capfd):
    write(f"[{command}]\n{text}\n")
    arguments = {"predict": ["x"], "watch": ["in", "--out", "out"], "bundle": ["slim", "b"]}.get(command, [])
    assert run([command, *arguments]) == 2
    assert capfd.readouterr().err.startswith(f"mri-edge: error: mri-edge.toml: {message}")


def test_control_codes_in_a_value_do_not_reach_the_terminal(capfd):
    write('[info]\nmodel = "\\u001b[2Jours"\n')
    assert run(["info"]) == 3
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (2 << 20)], ids=["not UTF-8", "2 MiB"])
def test_a_file_that_is_not_text_of_a_sensible_size_is_refused(content, capfd):
    Path("mri-edge.toml").write_bytes(content)
    assert run(["info"]) == 2
    assert capfd.readouterr().err.startswith("mri-edge: error: mri-edge.toml: ")


def test_a_folder_of_that_name_is_refused(capfd):
    Path("mri-edge.toml").mkdir()
    assert run(["info"]) == 2
    assert "mri-edge.toml: must be a file" in capfd.readouterr().err


def test_doctor_names_the_file_in_use():
    write("[predict]\nthreads = 1\n[export]\nseed = 3\n")
    assert doctor._facts()["defaults"] == "from mri-edge.toml for predict, export"


@pytest.mark.parametrize(
    "text",
    [
        "[tool.mri-edge.info]\njson = true",
        '[ tool . "mri-edge" ]\ninfo.json = true',
        "[tool]\nmri-edge.info.json = true",
        "tool.mri-edge.info.json = true",
        "tool = {mri-edge = {info = {json = true}}}",
    ],
)
def test_every_way_to_write_the_table_in_pyproject_is_read(text, capfd):
    write(text, "pyproject.toml")
    assert run(["info"]) == 0
    assert "defaults from pyproject.toml: json=True" in capfd.readouterr().err


def test_a_pyproject_of_another_tool_is_not_parsed():
    write('[project]\nname = "mri-edge"\n[tool.setuptools]\npackages = ["mri-edge"]\n', "pyproject.toml")
    program = "import sys; from mri_edge.cli import run; run(['info']); assert 'tomllib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_without_a_file_no_parser_is_imported():
    program = (
        "import sys; from mri_edge.cli import run; run(['predict', sys.argv[1]]); "
        "assert not {'tomllib', 'tomli', 'mri_edge.defaults'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, str(SCAN)], check=True, capture_output=True)
