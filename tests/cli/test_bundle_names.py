"""Every command takes a bundle in the same way, packed or not, and applies the same rule for signatures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge import Classifier
from mri_edge.authoring.packing import pack
from mri_edge.authoring.writer import new_bundle
from mri_edge.benchmarking import tuning
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest
from mri_edge.cli import run
from mri_edge.engines import engine_file
from mri_edge.errors import BundleError, SignatureError, UsageError

SCAN = str(Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg")
VARIABLE = "MRI_EDGE_REQUIRE_SIGNATURE"
READERS = {
    "info": ["info", "{}"],
    "info by option": ["info", "--model", "{}"],
    "verify": ["verify", "{}"],
    "verify by option": ["verify", "--model", "{}"],
    "bench": ["bench", "{}", "--engine", "onnxruntime", "--scans", SCAN],
    "bench by option": ["bench", "--model", "{}", "--engine", "onnxruntime", "--scans", SCAN],
    "tune": ["tune", "{}", "--seconds", "0.01", "--batch", "1"],
    "tune by option": ["tune", "--model", "{}", "--seconds", "0.01", "--batch", "1"],
    "warmup": ["warmup", "{}"],
    "warmup by option": ["warmup", "--model", "{}"],
    "predict": ["predict", SCAN, "--model", "{}"],
    "watch": ["watch", "in", "--out", "out", "--once", "--model", "{}"],
    "slim": ["bundle", "slim", "{}", "--artifact", "model.onnx", "--out", "slim"],
    "slim by option": ["bundle", "slim", "--model", "{}", "--artifact", "model.onnx", "--out", "slim"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path / "profiles"))
    monkeypatch.setattr(tuning, "thread_counts", lambda cores: [1])  # tune starts a process for each number of threads


@pytest.fixture
def packed(tiny_bundle: Path, tmp_path: Path) -> Path:
    pack(Bundle.open(tiny_bundle), tmp_path / "tiny.mribundle")
    shutil.rmtree(tiny_bundle)
    return tmp_path / "tiny.mribundle"


@pytest.mark.parametrize("command", READERS)
def test_a_packed_bundle_works_wherever_a_bundle_does(command: str, packed: Path, capfd) -> None:
    assert run([word.format(packed) for word in READERS[command]]) == 0, capfd.readouterr().err


def test_a_packed_bundle_answers_as_the_folder_does(tiny_bundle: Path, tmp_path: Path) -> None:
    pack(Bundle.open(tiny_bundle), tmp_path / "tiny.mribundle")
    answers = []
    for place in (tiny_bundle, tmp_path / "tiny.mribundle"):
        with Classifier.load(place) as classifier:
            answers.append(classifier.predict(SCAN))
    assert answers[0].probabilities == answers[1].probabilities
    assert answers[0].model == answers[1].model


@pytest.mark.parametrize("command", ["bench", "bench by option", "tune", "tune by option", "doctor"])
def test_a_folder_named_like_a_model_of_the_package_is_measured(
    command: str, tiny_onnx: Path, tiny_manifest: Manifest, tiny_artifact: Artifact, capfd
) -> None:
    """Commands that measure open the bundle in another process, which gets its path."""
    with new_bundle(Path("lite"), tiny_manifest) as writer:  # its artifact is not in the model of the package
        writer.path("model.tiny.onnx").write_bytes(tiny_onnx.read_bytes())
        writer.add_artifact(replace(tiny_artifact, file="model.tiny.onnx"))
    words = {**READERS, "doctor": ["doctor", "--json", "--model", "{}"]}[command]
    assert run([word.format("./lite") for word in words]) == 0, capfd.readouterr().err
    assert "no artifact 'model" not in capfd.readouterr().out


def test_a_packed_bundle_is_not_written_into(packed: Path, capfd) -> None:
    before = packed.read_bytes()
    for command in (["record", str(packed), SCAN], ["pack", str(packed), "--out", "again"]):
        assert run(["bundle", *command]) == 3
        assert "is packed, and a folder is needed. Unpack it" in capfd.readouterr().err
    assert packed.read_bytes() == before


def test_a_model_of_the_package_is_not_changed_by_name(tmp_path: Path, capfd) -> None:
    key = tmp_path / "hospital"
    assert run(["bundle", "keygen", str(key)]) == 0
    for command in (["record", "small", SCAN], ["sign", "small", "--key", f"{key}.pem"]):
        assert run(["bundle", *command]) == 2
        assert "small: is a model of the installed package, which must not change" in capfd.readouterr().err
    assert not (Bundle.open("small").require_folder() / "manifest.json.sig").exists()


def test_record_takes_its_bundle_by_option_too(tiny_bundle: Path, capfd) -> None:
    assert run(["bundle", "record", "--model", str(tiny_bundle), SCAN]) == 0
    assert run(["verify", str(tiny_bundle)]) == 0
    assert "reproduces the recorded results" in capfd.readouterr().out


@pytest.mark.parametrize(
    "command", [["info"], ["verify"], ["bench"], ["tune"], ["warmup"], ["bundle", "pack", "--out", "x"]]
)
def test_a_bundle_named_twice_is_a_usage_error(command: list[str], tiny_bundle: Path, capfd) -> None:
    assert run([*command, str(tiny_bundle), "--model", "vgg16"]) == 2
    assert "named twice" in capfd.readouterr().err


def test_a_bundle_that_a_command_needs_is_asked_for(capfd) -> None:
    assert run(["bundle", "pack", "--out", "x"]) == 2
    assert "Missing argument 'BUNDLE'" in capfd.readouterr().err


# --- signatures


@pytest.mark.parametrize("command", [command for command in READERS if "slim" not in command])
def test_an_empty_requirement_is_an_error(command: str, tiny_bundle: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert run([word.format(tiny_bundle) for word in READERS[command]]) == 2
    assert "must name a public key. Received: nothing" in capfd.readouterr().err


@pytest.mark.parametrize("command", [command for command in READERS if "slim" not in command])
def test_every_command_honours_the_variable(
    command: str, tiny_bundle: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
    assert run(["bundle", "keygen", "our"]) == 0
    monkeypatch.setenv(VARIABLE, "our.pub.pem")
    words = [word.format(tiny_bundle) for word in READERS[command]]
    assert run(words) == 3
    assert "is not signed, but a signature that our.pub.pem verifies is required" in capfd.readouterr().err
    assert run(["bundle", "sign", str(tiny_bundle), "--key", "our.pem"]) == 0
    assert run(words) == 0, capfd.readouterr().err


def test_unpack_and_the_library_honour_the_variable(packed: Path, monkeypatch, capfd) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
    assert run(["bundle", "keygen", "our"]) == 0
    for value, code, error in (("our.pub.pem", 3, SignatureError), ("", 2, UsageError)):
        monkeypatch.setenv(VARIABLE, value)
        assert run(["bundle", "unpack", str(packed), "--out", "new"]) == code
        assert not Path("new").exists()
        with pytest.raises(error):
            Classifier.load(packed)
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(error):
            Classifier.load(packed, require_signature=value)
        with pytest.raises(error):
            Classifier.load(Bundle.open(packed), require_signature=value)


# --- paths


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", [b"b\xff\xfendel", "bündel".encode()], ids=["no UTF-8", "umlaut"])
def test_predict_opens_a_bundle_whose_path_is_any_bytes(
    name: bytes, engine: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    folder = os.fsencode(tmp_path) + b"/" + name
    os.rename(os.fsencode(tiny_bundle), folder)
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "predict", SCAN, "--json", "--engine", engine, "--model", folder],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b'{"')


def test_a_file_that_is_not_a_bundle_is_refused_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"nothing of ours")
    with pytest.raises(BundleError, match=r"is not a packed bundle. A bundle is a folder, or a file made by"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
@pytest.mark.parametrize("command", ["unpack {packed}", "slim {packed} --artifact model.onnx"])
@pytest.mark.parametrize("out", ["typo/../thesis", "web"])
def test_a_folder_of_something_else_is_never_replaced(
    command, out, option, packed: Path, tmp_path: Path, capfd
) -> None:
    """A missing folder in the path, or a manifest.json of another program, does not make it a bundle."""
    for name, text in (("thesis/chapter", "important"), ("web/manifest.json", '{"name": "app"}'), ("web/app.js", "1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    words = ["bundle", *command.format(packed=packed).split(), "--out", out, *option]
    assert run(words) == 2
    assert "folder is not empty and is not a bundle" in capfd.readouterr().err
    assert (tmp_path / "thesis" / "chapter").read_text() == "important"
    assert (tmp_path / "web" / "app.js").read_text() == "1"


@pytest.mark.parametrize("command", ["unpack {packed}", "slim {packed} --artifact model.onnx"])
def test_a_new_bundle_may_be_behind_a_missing_folder(command, packed: Path, tmp_path: Path, capfd) -> None:
    words = ["bundle", *command.format(packed=packed).split(), "--out", "typo/../new"]
    assert run(words) == 0, capfd.readouterr().err
    assert Bundle.open(tmp_path / "new").artifact("model.onnx")
    assert run(words) == 2
    assert "a bundle is there already" in capfd.readouterr().err
    assert run([*words, "--overwrite"]) == 0


def test_a_bundle_is_not_packed_into_itself(tiny_bundle: Path, capfd) -> None:
    before = (tiny_bundle / "model.onnx").read_bytes()
    words = ["bundle", "pack", str(tiny_bundle), "--out", str(tiny_bundle / "model.onnx"), "--overwrite"]
    assert run(words) == 2
    assert "is inside" in capfd.readouterr().err
    assert (tiny_bundle / "model.onnx").read_bytes() == before
