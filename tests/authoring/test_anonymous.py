"""A bundle that is passed on contains neither names of scans nor paths of the training machine."""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest

from mri_edge import Bundle
from mri_edge.authoring import anonymous
from mri_edge.authoring.anonymous import anonymize_command
from mri_edge.authoring.packing import pack
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.signing import sign
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import EMBEDDED, embedded_models
from mri_edge.bundles.manifest import MANIFEST
from mri_edge.bundles.split import Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import BundleError

TEXTS = {".json", ".md", ".html", ".txt", ".csv", ".npy"}
PATH = re.compile(r"(?<![<\w/.:*])(?:\.\.?/|~/|/)[\w.-]+/|[A-Za-z]:\\")
NAMES = ("ward 3/Miller, Anna.jpg", "ward 3/Smith^John.PNG", "ward 3/unlisted scan.tif", "ward 3/IM0001")


def texts(folder: Path) -> dict[str, str]:
    """The content of each text file of a bundle, by file name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode(errors="replace")
        for path in folder.rglob("*")
        if path.suffix in TEXTS
    }


@pytest.fixture
def full(tiny_bundle: Path) -> Path:
    """The tiny bundle with the records of a training run, which contain names of images."""
    images = tuple(SplitImage(name, f"{i:x}" * 64, i % 2, "test") for i, name in enumerate(NAMES) if i != 2)
    bundle = Bundle.open(tiny_bundle)
    command = "mri-edge train --data '/srv/anna/my scans' --out=../runs/x '--backbone-weights=C:\\weights' --seed 0"
    with rewrite_bundle(bundle) as writer:
        writer.add_document("split.json", Split(images).to_json())
        test = [{"file": name, "label": i % 2, "probabilities": [1 - i % 2, i % 2]} for i, name in enumerate(NAMES)]
        test[0]["probabilities"] = [0.25, 0.75]  # a mistake, which the card lists by name
        writer.add_document("metrics.json", json.dumps({"test": test}))
        judged = [{"file": image.file, "sha256": {"file": image.sha256}} for image in images]
        flips = {"model.onnx": {"flips": [{"file": NAMES[1]}]}}
        parity = {"reference": {"file": "model.keras"}, "images": judged, "artefacts": flips}
        writer.add_document("parity.json", json.dumps(parity))
        writer.add_document("data.json", json.dumps([{"kind": "duplicate", "files": [NAMES[0], NAMES[3]]}]))
        writer.add_document("report/mistakes.html", f"<p>{NAMES[0]}")
        writer.update(creation=replace(writer.manifest.creation, command=command))
        writer.add_card()
    assert "Miller" in (tiny_bundle / "MODEL_CARD.md").read_text()
    return tiny_bundle


def test_a_slim_bundle_contains_no_image_name_and_no_path(full: Path, tmp_path: Path, capfd) -> None:
    assert run(["bundle", "slim", str(full), "--artifact", "model.onnx", "--out", str(tmp_path / "slim")]) == 0
    found = texts(tmp_path / "slim")
    assert {"manifest.json", "metrics.json", "parity.json", "MODEL_CARD.md", "split.npy"} <= set(found)
    for file, text in found.items():
        for word in ("Miller", "Smith", "unlisted", "IM0001", "ward", "anna", "weights=C"):
            assert word not in text, file
    command = Bundle.open(tmp_path / "slim").manifest.creation.command
    assert command == "mri-edge train --data PATH --out=PATH --backbone-weights=PATH --seed 0"
    # The records of an image still match, by its hash.
    metrics, parity = (json.loads(found[name]) for name in ("metrics.json", "parity.json"))
    assert [row["file"] for row in metrics["test"]] == ["0" * 16, "1" * 16, "image 1", "3" * 16]
    assert parity["images"][1]["file"] == parity["artefacts"]["model.onnx"]["flips"][0]["file"] == "1" * 16
    assert parity["reference"]["file"] == "model.keras"
    assert "0" * 16 in found["MODEL_CARD.md"]
    assert run(["verify", str(tmp_path / "slim")]) == 0


def test_a_bundle_with_image_names_is_neither_packed_nor_signed(full: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
    from mri_edge.bundles.signatures import make_keys

    make_keys(tmp_path / "our.pem", tmp_path / "our.pub.pem")

    def deliver(folder: Path) -> None:
        sign(Bundle.open(folder), tmp_path / "our.pem", passphrase=str)
        pack(Bundle.open(folder), tmp_path / "packed")

    for step in (lambda: pack(Bundle.open(full), tmp_path / "packed"), lambda: deliver(full)):
        with pytest.raises(BundleError, match=r"names scans, and this bundle is to be passed on. Make a copy"):
            step()
    assert not (tmp_path / "packed").exists()
    assert not (full / "manifest.json.sig").exists()
    assert run(["bundle", "slim", str(full), "--artifact", "model.onnx", "--out", str(tmp_path / "slim")]) == 0
    deliver(tmp_path / "slim")


@pytest.mark.parametrize("file", ["split.json", "metrics.json", "parity.json", "data.json", "report/mistakes.html"])
def test_image_names_are_found_in_each_record(file: str, full: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(full)
    others = ("split.json", "metrics.json", "parity.json", "data.json", "report/mistakes.html", "MODEL_CARD.md")
    with rewrite_bundle(
        bundle, keep=[entry.file for entry in bundle.entries() if entry.file == file or entry.file not in others]
    ):
        pass
    with pytest.raises(BundleError, match=re.escape(f"{file} names scans")):
        pack(Bundle.open(full), tmp_path / "packed")


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_bundles_contain_no_image_name_and_no_path(name: str, tmp_path: Path) -> None:
    for file, text in texts(EMBEDDED / name).items():
        assert re.search(r"navoneel/(yes|no)/\w", text) is None, file
        if file.startswith("golden") or file.endswith((".html", ".npy")):
            continue
        assert re.findall(r"(?i)(?<!golden/)\b[\w-]+\.(?:jpe?g|png|bmp|tiff?|dcm)\b", text) == [] or file == MANIFEST
        assert PATH.search(text) is None, file
    pack(Bundle.open(EMBEDDED / name), tmp_path / "packed")


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_bundles_contain_no_file_name_of_the_data_set(name: str, scans: Path) -> None:
    stems = {path.name for path in scans.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    for file, text in texts(EMBEDDED / name).items():
        assert not {word for word in re.findall(r"[\w ()-]+\.\w+", text) if word.strip() in stems}, file


# --- command lines


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        (["--data", "/srv/anna/scans"], "--data PATH"),
        (["--data=/srv/anna/scans"], "--data=PATH"),
        (["--data", "../scans"], "--data PATH"),
        (["--data=~/scans"], "--data=PATH"),
        (["--data", "C:\\Users\\anna"], "--data PATH"),
        (["--data", "here"], "--data PATH"),
        (["--data=here"], "--data=PATH"),
        (["here/"], "PATH"),
        (["--seed", "0", "--recipe=small"], "--seed 0 --recipe=small"),
    ],
)
def test_a_recorded_command_contains_no_path(arguments: list[str], recorded: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(sys, "argv", ["mri-edge", "train", *arguments])
    provenance = current_provenance()
    assert provenance.command == f"mri-edge train {recorded}"
    assert platform.node() not in str(provenance).split()
    assert getpass.getuser() not in str(provenance).split()


def test_a_command_line_that_cannot_be_parsed_is_dropped() -> None:
    assert anonymize_command("mri-edge train 'half a quote /srv/anna") == ""


def test_the_names_of_scans_are_found_in_words_of_any_length():
    text = 'a b.jpg, c/d.dcm "e.nii.gz" f,g.png,h x.jpg.y.png.z i.jpgs'
    assert anonymous._IMAGE_NAME.findall(text) == ["b.jpg", "d.dcm", "e.nii", "f,g.png", "x.jpg.y.png"]
    start = perf_counter()
    assert anonymous._IMAGE_NAME.findall("0.123," * 4000) == []
    assert perf_counter() - start < 2  # milliseconds; half a minute if every character may begin a name
