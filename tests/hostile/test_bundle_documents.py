"""A damaged document of a bundle causes one line and exit code 3, never a traceback."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_edge import Classifier
from mri_edge.authoring.golden import record
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, Artifact, Manifest, Novelty
from mri_edge.bundles.split import CONDENSED, Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import BundleError, IntegrityError, MriEdgeError
from mri_edge.inference.out_of_distribution import OutOfDistributionCheck
from mri_edge.inference.replay import replay
from mri_edge.storage.atomic import sha256_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCAN = str(EXAMPLES / "phantom-1.jpg")
# Damaged variants of each document. For a long run: MRI_EDGE_FUZZ=2000 pytest tests/hostile
ROUNDS = int(os.environ.get("MRI_EDGE_FUZZ", "12"))
JSONS = ("golden.json", "metrics.json", "parity.json", "teacher.json")
ARRAYS = ("novelty.npy", CONDENSED, "golden.npz")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    10**400,
    "",
    "text",
    [],
    [[]],
    {},
    {"a": {}},
    [None],
    "\ud800",
    "\x1b[31m",
)


@pytest.fixture
def full(tiny_bundle: Path) -> Path:
    """The tiny bundle with every document that a bundle may have."""
    bundle = Bundle.open(tiny_bundle)
    with rewrite_bundle(bundle) as writer:
        np.save(writer.path("novelty.npy"), np.eye(3, 4, dtype=np.float32))
        writer.add_document("novelty.npy")
        writer.update(novelty=Novelty("novelty.npy", "residual", 1.0, 0.99, 1, 1))
        images = (SplitImage("a", "0" * 64, 0, "train"), SplitImage("b", "1" * 64, 1, "test"))
        writer.add_document(CONDENSED, Split(images).to_condensed())
        test = [{"file": "1" * 16, "label": 1, "probabilities": [0.6, 0.4]}]
        folders = [{"folder": "yes", "label": 1, "value": 1.0, "low": 0.5, "high": 1.0, "images": 1}]
        metrics = {"confusion_matrix": [[1, 0], [0, 1]], "folders": folders, "test": test}
        writer.add_document("metrics.json", json.dumps(metrics))
        parity = {"images": [{"file": "1" * 16, "sha256": {"file": "1" * 64}}], "artefacts": {}}
        writer.add_document("parity.json", json.dumps(parity))
        writer.add_document("teacher.json", '{"teachers": ["t"], "called": [1], "probabilities": [[0.5, 0.5]]}')
        writer.add_card()
    record(Bundle.open(tiny_bundle), [Path(SCAN)], EXAMPLES / "NOTICE")
    return tiny_bundle


def put(folder: Path, file: str, content: bytes) -> None:
    """Change a document, and its hash in the manifest, so that only the content is wrong."""
    (folder / file).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    for entry in manifest["documents"]:
        if entry["file"] == file:
            entry.update(size_bytes=len(content), sha256=sha256_of(folder / file))
    (folder / MANIFEST).write_text(json.dumps(manifest))


def read_all(folder: Path) -> None:
    """Read all that commands read from a bundle. Only BundleErrors are acceptable."""
    for step in steps(folder):
        with suppress(BundleError):
            step()


def steps(folder: Path) -> tuple[Callable[[], object], ...]:
    """Return functions that each read a part of what commands read from a bundle. The last one writes ``out``."""
    return (
        lambda: replay(Bundle.open(folder)),
        lambda: Classifier.load(folder).close(),
        lambda: _split(Bundle.open(folder)),
        lambda: _rewrite(Bundle.open(folder), folder.with_name("out")),
    )


def _split(bundle: Bundle) -> None:
    held = {document.file: document for document in bundle.manifest.documents}
    Split.find(held, lambda file: bundle.read(held[file]))


def _rewrite(bundle: Bundle, out: Path) -> None:
    with rewrite_bundle(bundle, out):
        pass


def damaged(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Cut the content, flip some bits, insert bytes, or repeat a part."""
    place = rng.randrange(len(content))
    yield content[:place]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        changed[rng.randrange(min(len(content), rng.choice((128, len(content)))))] ^= 1 << rng.randrange(8)
    yield bytes(changed)
    yield content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
    yield content[:place] + content[place // 2 :]


@pytest.mark.parametrize("file", [*JSONS, *ARRAYS])
def test_damaged_documents_raise_a_message(full: Path, file: str) -> None:
    content, rng = (full / file).read_bytes(), random.Random(file)
    for _ in range(max(1, ROUNDS // 8 if file == "golden.npz" else ROUNDS // 4)):
        for other in damaged(content, rng):
            put(full, file, other)
            read_all(full)


def _variants(value: Any) -> Iterator[Any]:
    """Yield the same JSON with one value replaced, at every position in turn."""
    yield from VALUES
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, item in list(items):
        for variant in _variants(item):
            copy = value.copy()
            copy[key] = variant
            yield copy
        if isinstance(value, dict):
            yield {name: other for name, other in value.items() if name != key}


@pytest.mark.parametrize("file", JSONS)
def test_json_of_every_wrong_type_raises_a_message(full: Path, file: str) -> None:
    variants = list(_variants(json.loads((full / file).read_text())))
    for variant in random.Random(file).sample(variants, min(ROUNDS, len(variants))):
        put(full, file, json.dumps(variant).encode())
        read_all(full)


def test_a_manifest_with_any_wrong_value_raises_a_message(full: Path, capfd) -> None:
    text = (full / MANIFEST).read_text()
    variants = list(_variants(json.loads(text)))
    for variant in random.Random(1).sample(variants, ROUNDS):
        (full / MANIFEST).write_text(json.dumps(variant))
        assert run(["info", str(full)]) in (0, 3)
        with suppress(MriEdgeError):
            replay(Bundle.open(full))
        out, err = capfd.readouterr()
        assert "\x1b" not in out + err


def header(text: str) -> bytes:
    """Make a ``.npy`` file with this header and no data."""
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize("file", ["novelty.npy", CONDENSED])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"cos\nsystem\n(S'true'\ntR.",
        header("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }"),
        header("(" * 500),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }") + bytes(4),
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
        b"PK\x03\x04" + bytes(30),
    ],
    ids=range(11),
)
def test_hostile_arrays_raise_a_message(full: Path, file: str, content: bytes) -> None:
    put(full, file, content)
    bundle = Bundle.open(full)
    with pytest.raises(BundleError):
        OutOfDistributionCheck.of(bundle) if file == "novelty.npy" else _split(bundle)
    read_all(full)


# --- a plane that does not match the model


@pytest.fixture
def explaining(
    tmp_path: Path, tiny_onnx: Path, tiny_manifest: Manifest, tiny_artifact: Artifact
) -> Callable[..., Path]:
    """Return a function that makes a bundle with the given plane and limit for a model with four features."""
    onnx = pytest.importorskip("onnx", reason="the model is made with onnx (group 'dev')")

    def make(plane: np.ndarray[Any, Any], limit: float = 1.0) -> Path:
        model = onnx.load(tiny_onnx)
        model.graph.node.append(onnx.helper.make_node("ReduceMean", ["active"], ["features"], axes=[2, 3], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", 4]))
        folder = tmp_path / "explaining"
        with new_bundle(folder, tiny_manifest, overwrite=True) as writer:
            writer.path("model.onnx").write_bytes(model.SerializeToString())
            writer.add_artifact(tiny_artifact)
            np.save(writer.path("novelty.npy"), plane)
            writer.add_document("novelty.npy")
            writer.update(novelty=Novelty("novelty.npy", "residual", limit, 0.99, 1, 1))
        return folder

    return make


def test_a_plane_that_fits_is_taken(explaining: Callable[..., Path]) -> None:
    with Classifier.load(explaining(np.eye(3, 4, dtype=np.float32))) as classifier:
        assert classifier.predict(SCAN).label


@pytest.mark.parametrize(
    ("plane", "limit"),
    [
        (np.eye(3, 5, dtype=np.float32), 1.0),
        (np.eye(3, 3, dtype=np.float32), 1.0),
        (np.eye(3, 4, dtype=np.float64), 1.0),
        (np.full((3, 4), np.nan, np.float32), 1.0),
        (np.full((3, 4), np.inf, np.float32), 1.0),
        (np.eye(3, 4, dtype=np.float32), 0.0),
        (np.eye(3, 4, dtype=np.float32), -1.0),
    ],
)
def test_a_plane_that_does_not_fit_is_a_fault_of_the_bundle_not_of_scans(
    explaining: Callable[..., Path], plane: np.ndarray[Any, Any], limit: float, tmp_path: Path, capfd
) -> None:
    folder = explaining(plane, limit)
    with pytest.raises(IntegrityError):
        Classifier.load(folder)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.jpg").write_bytes(Path(SCAN).read_bytes())
    words = ["watch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--once", "--settle", "0"]
    assert run([*words, "--model", str(folder)]) == 3
    assert (tmp_path / "in" / "scan.jpg").exists()
    assert list((tmp_path / "out").glob("failed/*")) == []


def test_a_limit_that_is_not_a_number_is_refused(explaining: Callable[..., Path]) -> None:
    folder = explaining(np.eye(3, 4, dtype=np.float32))
    text = (folder / MANIFEST).read_text()
    for limit in ("NaN", "Infinity", "1e999", '"1"', "null"):
        (folder / MANIFEST).write_text(text.replace('"limit": 1.0', f'"limit": {limit}'))
        assert (folder / MANIFEST).read_text() != text
        with pytest.raises(BundleError):
            Bundle.open(folder)


def test_a_model_with_names_that_are_not_utf8_is_refused_with_a_message(tiny_onnx: Path, tmp_path: Path) -> None:
    from mri_edge.engines import engine_files, open_engine
    from mri_edge.errors import EngineError

    path = tmp_path / "model.onnx"
    for name in (b"image", b"probabilities", b"dense", b"Softmax"):
        path.write_bytes(tiny_onnx.read_bytes().replace(name, b"\xff" * len(name)))
        for file in engine_files().values():
            if ".onnx" in file.SUFFIXES and not file.missing():
                with suppress(EngineError):
                    open_engine(path, engine=file.NAME, provider="cpu").close()


def test_control_codes_of_a_manifest_reach_no_terminal(full: Path, tmp_path: Path, monkeypatch) -> None:
    """This needs a terminal, because click removes color codes without one."""
    pty = pytest.importorskip("pty", reason="terminals are of POSIX")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan.jpg").write_bytes(Path(SCAN).read_bytes())
    evil = "\x1b]0;owned\x07\x9b31m\x08"
    with rewrite_bundle(Bundle.open(full)) as writer:
        manifest = writer.manifest
        writer.update(
            name=f"n{evil}",
            version=f"v{evil}",
            labels=(f"no{evil}", f"yes{evil}"),
            limits=f"l{evil}",
            intended_use=f"u{evil}",
            licences={f"k{evil}": f"w{evil}"},
            creation=replace(manifest.creation, command=f"c{evil}", created=evil),
            training=replace(manifest.training, recipe=evil, backbone=evil, split=evil, backbone_weights=evil),
            novelty=None,
        )
    model = ["--model", str(full)]
    for words in (
        ["info", *model],
        ["verify", *model],
        ["predict", SCAN, *model, "-v"],
        ["predict", SCAN, *model, "--csv"],
        ["predict", SCAN, *model, "--json"],
        ["watch", "in", "--out", "out", "--once", "--settle", "0", *model],
        ["warmup", *model],
        ["bench", *model, "--engine", "onnxruntime"],
        ["bundle", "slim", *model, "--artifact", "model.onnx", "--out", "slim", "--overwrite"],
        ["bundle", "pack", *model, "--out", "packed", "--overwrite"],
        ["bundle", "unpack", "packed", "--out", "unpacked", "--overwrite"],
    ):
        shown = bytearray()

        def keep(descriptor: int, shown: bytearray = shown) -> bytes:
            piece = os.read(descriptor, 1024)
            shown.extend(piece)
            return b"x" * bool(piece)

        code = "import sys; from mri_edge.cli import run; sys.exit(run(sys.argv[1:]))"
        status = pty.spawn([sys.executable, "-c", code, *words], keep)
        assert status == 0, (words, bytes(shown)[-600:])
        assert b"owned" in shown or words[0] not in ("info", "verify", "predict", "watch"), words
        for code_of_evil in (b"\x1b]0;owned", b"owned\x07", "\x9b".encode(), b"\x08"):
            assert code_of_evil not in shown, words


def test_a_document_beside_the_manifest_is_not_read(tiny_bundle: Path) -> None:
    """A file that the manifest does not list is ignored, and a changed copy of the bundle lacks it."""
    (tiny_bundle / "metrics.json").write_text("not JSON")
    for step in steps(tiny_bundle):
        step()
    assert sorted(path.name for path in tiny_bundle.with_name("out").iterdir()) == ["manifest.json", "model.onnx"]
