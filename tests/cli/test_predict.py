"""`mri-edge predict` with real ONNX Runtime on a tiny model: output formats, unusual and invalid input, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scans that work and four files that do not."""
    folder = tmp_path / "scans"
    folder.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (90, 70), np.uint8)
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(grey).convert("RGB").save(folder / "b.jpg")
    Image.fromarray(grey).save(folder / "c.jpg")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "truncated.jpg").write_bytes((folder / "b.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("a folder may hold other things")
    return folder


@pytest.fixture
def predict(tiny_bundle, capfd):
    """Run predict with the tiny bundle: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(["predict", "--model", str(tiny_bundle), *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def test_the_table_names_what_ran_and_the_intended_use(predict, folder):
    code, out, err = predict(folder / "a.png")
    assert (code, err) == (0, "")
    assert "onnxruntime | CPUExecutionProvider" in out.splitlines()[0]
    assert "a.png" in out
    assert "not a medical device" in out.splitlines()[-1]


def test_one_bad_file_neither_stops_nor_disturbs_the_others(predict, folder):
    code, out, err = predict(folder, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    names = [Path(row["file"]).name for row in rows]
    assert code == 1
    assert names == ["a.png", "b.jpg", "c.jpg", "empty.jpg", "text.jpg", "truncated.jpg"]
    assert ["label" in row for row in rows] == [True, True, True, False, False, False]
    assert len(err.splitlines()) == 4
    assert f"mri-edge: {folder}: 1 file skipped: .txt (notes.txt)" in err.splitlines()
    alone = json.loads(predict(folder / "c.jpg", "--json")[1])
    # 1e-6: another batch size may order float32 sums otherwise.
    assert alone["probabilities"] == pytest.approx(rows[2]["probabilities"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.jpg", "empty (0 bytes)"),
        ("text.jpg", "Received: text"),
        ("truncated.jpg", "truncated"),
        ("missing.jpg", "no such file"),
        ("*.gif", "no file matches"),
    ],
)
def test_bad_input_is_one_clear_line(predict, folder, name, words):
    code, _, err = predict(folder / name, folder / "a.png", "--json")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert words in err
    assert name in err


def test_folder_without_pictures(predict, tmp_path):
    (tmp_path / "nothing").mkdir()
    code, out, err = predict(tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert "no scans" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["missing.jpg", "text.jpg", "*.gif"])
def test_a_single_failed_scan_prints_one_line(predict, folder, name):
    code, out, err = predict(folder / name)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    code, out, err = predict(folder / name, folder / "a.png")
    assert code == 1
    heads, failed, answered = out.splitlines()[1:4]
    assert (heads.split()[0], failed.split()[0]) == ("label", "-")
    assert answered.split()[0] in ("no", "yes")


def test_a_label_is_by_the_threshold_of_the_manifest_in_every_form(tiny_bundle, folder, tmp_path, capfd):
    """A threshold just above or just below the scan's probability changes the label, far from 0.5 as well."""
    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.bundle import Bundle

    scan = str(folder / "a.png")
    common = ["predict", "--model", str(tiny_bundle), scan]
    assert run([*common, "--json"]) == 0
    probability = json.loads(capfd.readouterr().out)["probabilities"]["yes"]
    for number, (threshold, label) in enumerate(
        [(probability + 0.02, "no"), (probability - 0.02, "yes"), (0.999, "no"), (0.001, "yes")]
    ):
        with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
            writer.update(threshold=threshold)
        assert run([*common, "--json"]) == 0
        record = json.loads(capfd.readouterr().out)
        assert (record["label"], record["threshold"]) == (label, threshold)
        assert run([*common, "--csv"]) == 0
        [row] = csv.DictReader(io.StringIO(capfd.readouterr().out))
        assert (row["label"], float(row["threshold"])) == (label, threshold)
        assert run(common) == 0
        assert capfd.readouterr().out.splitlines()[2].split()[0] == label
        assert run([*common, "--resume", str(tmp_path / f"{number}.jsonl")]) == 0
        assert json.loads((tmp_path / f"{number}.jsonl").read_text())["label"] == label
        incoming, out = tmp_path / f"in-{number}", tmp_path / f"out-{number}"
        incoming.mkdir()
        shutil.copy(scan, incoming)
        capfd.readouterr()
        assert run(["watch", str(incoming), "--out", str(out), "--once", "--settle", "0", *common[1:3]]) == 0
        assert capfd.readouterr().out.split()[1] == label
        assert json.loads((out / "results" / "a.png.json").read_text())["label"] == label


def test_pixel_bomb_is_refused_before_it_is_decoded(predict, tmp_path):
    Image.new("1", (40_000, 40_000)).save(tmp_path / "bomb.png")
    code, _, err = predict(tmp_path / "bomb.png")
    assert code == 1
    assert "too large" in err


def test_csv_has_a_row_for_every_scan(predict, folder):
    code, out, _ = predict(folder, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1
    assert len(rows) == 6
    assert rows[0]["provider"] == "CPUExecutionProvider"
    # Printed with six digits each, so that their sum may be off by one of the last.
    assert float(rows[0]["probability of no"]) + float(rows[0]["probability of yes"]) == pytest.approx(1, abs=2e-6)
    assert "empty" in rows[3]["error"]


@pytest.mark.parametrize("form", ["--json", "--csv", "-v"])
def test_names_that_stdout_cannot_encode_are_written_out(tiny_bundle, folder, monkeypatch, form):
    scan = (folder / "a.png").rename(folder / "é中😀.png")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["predict", "--model", str(tiny_bundle), form, str(scan)]) == 0
    stream.flush()
    written = stream.buffer.getvalue()
    if form == "--json":
        assert json.loads(written.decode())["file"] == str(scan)  # JSON is read as UTF-8
    else:
        assert "é\\u4e2d\\U0001f600.png" in written.decode("latin-1")


def test_patterns_recursion_and_lists_on_stdin(predict, folder, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "d.png")
    assert len(predict(folder / "*.jpg", "--json")[1].splitlines()) == 5
    assert "d.png" not in predict(folder, "--json")[1]
    assert "d.png" in predict(folder, "--json", "--recursive")[1]
    assert "d.png" in predict(folder / "**" / "*.png", "--json")[1]
    assert "d.png" not in predict(folder / "[s]*", "--json")[1]
    assert "d.png" in predict(folder / "[s]*", "--json", "--recursive")[1]
    assert predict(folder / "**", "--json", "--recursive")[1].count("d.png") == 1
    listed = f"{folder / 'b.jpg'}\n\n{folder / 'c.jpg'}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    assert len(predict("-", "--json")[1].splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--engine", "caffe"], 2, "unknown engine 'caffe'"),
        (["--provider", "abacus"], 2, "unknown provider 'abacus'"),
        (["--artifact", "model.int4.onnx"], 2, "It has: "),
        (["--threads", "0"], 2, "--threads"),
        (["--provider", "directml"], 4, "no DmlExecutionProvider"),
    ],
)
def test_wrong_options(predict, folder, arguments, code, words):
    if sys.platform == "win32" and code == 4:
        pytest.skip("DirectML may come up on Windows")
    result, out, err = predict(folder / "a.png", *arguments)
    assert result == code
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_bundles_that_cannot_be_trusted(tiny_bundle, folder, capfd):
    def attempt(words: str) -> None:
        assert run(["predict", "--model", str(tiny_bundle), str(folder / "a.png")]) == 3
        out, err = capfd.readouterr()
        assert out == ""
        assert words in err
        assert len(err.splitlines()) == 1

    model = tiny_bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    attempt("SHA-256")
    model.write_bytes(content[:-1])
    attempt("bytes, the manifest says")
    model.unlink()
    attempt("listed in the manifest")
    (tiny_bundle / "manifest.json").unlink()
    attempt("no manifest.json in it")


def test_predict_is_light_and_stays_off_the_network(tiny_bundle, folder):
    """The process imports no heavy library and looks up no host name."""
    code = """
import json, sys
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event.startswith("socket.") else None)
from mri_edge.cli import run
status = run(sys.argv[1:])
heavy = {"tensorflow", "keras", "torch", "onnx", "sklearn", "scipy", "matplotlib", "pandas"} & set(sys.modules)
print(json.dumps([status, sorted(heavy), calls]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", "--json", "--model", tiny_bundle, folder / "a.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], []]


def test_closed_pipe_is_quiet(tiny_bundle, folder):
    """`mri-edge predict ... | head -1`: the reader closes the pipe, and no error is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    program = Path(sys.executable).with_name("mri-edge")
    try:
        done = subprocess.run(
            [program, "predict", "--json", "--model", tiny_bundle, folder / "a.png"],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
