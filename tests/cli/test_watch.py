"""`mri-edge watch` loses and duplicates nothing, however scans arrive, when it is killed or the disk is full."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, Artifact, Manifest
from mri_edge.cli import run
from mri_edge.errors import InputError, printable
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Prediction
from mri_edge.services.watch.outbox import Outbox
from mri_edge.services.watch.watch import Watch
from mri_edge.storage import atomic
from mri_edge.storage.atomic import sha256_of

PROGRAM = Path(sys.executable).with_name("mri-edge")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest, tiny_artifact: Artifact) -> Path:
    """A bundle for the fake engine, which opens at once and answers with the mean gray level."""
    folder = tmp_path_factory.mktemp("fake") / "bundle"
    with new_bundle(folder, tiny_manifest) as writer:
        writer.path("model.fake").write_text('{"input": [128, 128, 3], "classes": 2}')
        writer.add_artifact(replace(tiny_artifact, file="model.fake", format="fake"))
    return folder


class Places:
    """The two folders of a watch, and how to run it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.incoming, self.out, self.model = root / "in", root / "out", model
        self.incoming.mkdir()

    def scan(self, name: str, level: int = 100, folder: Path | None = None) -> Path:
        path = (folder or self.incoming) / name
        Image.fromarray(np.full((40, 40), level, np.uint8)).save(path, "PNG")
        return path

    def command(self, *arguments: object) -> list[str]:
        options = ("--out", self.out, "--model", self.model, "--every", "0.05", "--settle", "0.1")
        return ["watch", *map(str, (self.incoming, *options, *arguments))]

    def once(self, *arguments: object) -> int:
        return run(self.command("--once", "--settle", "0", *arguments))

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *self.command(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def result(self, name: str) -> dict[str, object]:
        record: dict[str, object] = json.loads((self.out / "results" / f"{name}.json").read_text())
        return record

    def files(self) -> list[str]:
        """Every file but the lock, relative to the output folder."""
        paths = (path for path in self.out.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
        return sorted(path.relative_to(self.out).as_posix() for path in paths)


@pytest.fixture
def places(tmp_path: Path, fake_bundle: Path) -> Places:
    return Places(tmp_path, fake_bundle)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def started(places: Places, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A watch that has made its folders and its lock; killed at the end if the test did not end it.

    As a parameter it takes more of its options.
    """
    process = places.start("--json", *getattr(request, "param", ()))
    wait_for(lambda: process.stderr is not None and "watching" in process.stderr.readline())
    yield process
    process.kill()
    process.communicate()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


# --- which files are read, and where they are moved


def test_each_scan_has_its_result_and_is_moved(places, capfd):
    places.scan("a.png", 51)
    places.scan("b.png", 204)
    (places.incoming / "bad.png").write_text("not a picture")
    digests = {path.name: sha256_of(path) for path in places.incoming.iterdir()}
    assert places.once("--json") == 1
    out, err = capfd.readouterr()
    assert places.files() == [
        *("done/a.png", "done/b.png", "failed/bad.png"),
        *("results/a.png.json", "results/b.png.json", "results/bad.png.json"),
    ]
    for name, digest in digests.items():
        assert places.result(name)["sha256"] == digest == sha256_of(places.out / places.result(name)["moved_to"])
    assert places.result("a.png")["probabilities"]["yes"] == pytest.approx(51 / 255, abs=1e-6)
    assert places.result("b.png")["label"] == "yes"
    assert "not a medical device" in places.result("b.png")["notice"]
    assert "not PNG" in places.result("bad.png")["error"]
    assert sorted((row["file"] for row in map(json.loads, out.splitlines())), key=os.path.basename) == [
        str(places.incoming / name) for name in ("a.png", "b.png", "bad.png")
    ]
    assert "watching" in err
    assert places.once() == 0  # nothing left to do


def test_files_that_are_not_scans_stay_in_place(places, capfd):
    places.scan(".hidden.png")
    places.scan("a.png.part")
    places.scan("b.png.tmp")
    (places.incoming / "letter.pdf").write_text("%PDF")
    (places.incoming / "sub.png").mkdir()
    target = places.scan("secret.png", folder=places.incoming.parent)
    (places.incoming / "link.png").symlink_to(target)
    if hasattr(os, "mkfifo"):
        os.mkfifo(places.incoming / "pipe.png")  # opening it would wait for ever
    before = sorted(path.name for path in places.incoming.iterdir())
    assert places.once() == 0
    err = capfd.readouterr().err
    assert sorted(path.name for path in places.incoming.iterdir() if path.name != ".mri-edge.lock") == before
    assert places.files() == []
    assert "letter.pdf: ignored, no reader recognizes it" in err
    assert "link.png: ignored, it is a link" in err
    assert ("pipe.png: ignored, it is a pipe, a socket or a device" in err) is hasattr(os, "mkfifo")
    assert ".hidden" not in err


def test_a_file_too_large_for_a_scan_is_never_read_and_stays_in_place(places, capfd, monkeypatch):
    def hash_small_file(path: Path, *arguments: Callable[[], None]) -> str:
        assert path.stat().st_size < 1 << 30
        return sha256_of(path, *arguments)

    for module in ("watch", "outbox"):
        monkeypatch.setattr(f"mri_edge.services.watch.{module}.sha256_of", hash_small_file)
    for name in ("a.png", "b.png"):
        places.scan(name)
    os.truncate(places.incoming / "a.png", 60 << 30)  # takes no space on the disk
    assert places.once() == 1
    assert "a.png: too large, 64,425 MB. The limit is 10,000 MB. It stays where it is" in capfd.readouterr().err
    assert places.files() == ["done/b.png", "results/b.png.json"]
    os.truncate(places.out / "done" / "b.png", 60 << 30)
    (places.incoming / "a.png").unlink()
    digest = sha256_of(places.scan("b.png"))
    assert places.once() == 0
    assert sha256_of(places.out / "done" / f"b.{digest[:12]}.png") == digest
    assert (places.out / "done" / "b.png").stat().st_size == 60 << 30


def test_links_that_cannot_be_followed_are_ignored(places, capfd):
    locked = places.incoming.parent / "locked"
    locked.mkdir()
    # The system refuses each for another reason; root may enter the first one.
    for name, target in (("a.png", locked / "a.png"), ("b.png", "n" * 300), ("c.png", "c.png"), ("d.png", "none")):
        (places.incoming / name).symlink_to(target)
    places.scan("scan.png")
    locked.chmod(0)
    try:
        assert places.once() == 0
    finally:
        locked.chmod(0o700)
    err = capfd.readouterr().err
    for name in ("a.png", "b.png", "c.png", "d.png"):
        assert f"{name}: ignored, it is a link" in err
    assert places.files() == ["done/scan.png", "results/scan.png.json"]


# So that no pause of this process on a machine with other work looks like the end of a file.
patient = pytest.mark.parametrize("started", [("--settle", "1")], ids=["patient"], indirect=True)


@patient
def test_a_scan_is_taken_when_it_is_written_to_its_end(places, started):
    content = places.scan("complete.png", folder=places.incoming.parent).read_bytes()
    pieces = [content[place : place + 15] for place in range(0, len(content), 15)]
    pause = 0.3  # shorter than --settle; all pauses together are longer
    assert len(pieces) * pause > 1
    with open(places.incoming / "slow.png", "wb", buffering=0) as file:
        for piece in pieces:
            assert not (places.out / "results" / "slow.png.json").exists()
            file.write(piece)
            time.sleep(pause)
    wait_for((places.out / "done" / "slow.png").exists)
    assert places.result("slow.png")["label"] == "no"


@patient
def test_a_scan_that_stalls_half_way_gets_more_time(places, started):
    """A transfer that stalls for one to five times --settle is not a damaged picture yet."""
    content = places.scan("complete.png", folder=places.incoming.parent).read_bytes()
    path = places.incoming / "slow.png"
    path.write_bytes(content[:60])
    time.sleep(1.5)
    assert not (places.out / "results" / "slow.png.json").exists()
    path.write_bytes(content)
    wait_for((places.out / "results" / "slow.png.json").exists)
    assert "label" in places.result("slow.png")


def test_heatmaps_are_written_if_asked_for(places):
    places.scan("a.png")
    assert places.once() == 0
    assert "heatmap" not in places.result("a.png")
    places.scan("b.png", 20)
    assert places.once("--heatmap") == 0
    with Image.open(places.out / str(places.result("b.png")["heatmap"])) as opened:
        assert opened.format == "PNG"
        assert opened.width > 2 * 384


def test_heatmaps_of_an_artifact_with_a_low_score_are_refused(places, heatmap_score, capfd):
    scan = places.scan("a.png")
    places.model = Path(shutil.copytree(places.model, places.incoming.parent / "scored"))
    manifest = Bundle.open(places.model).manifest
    score = heatmap_score(manifest.artifacts[0], 0.5)
    (places.model / MANIFEST).write_text(replace(manifest, heatmaps=score).to_json())
    assert places.once("--heatmap") == 2
    assert "at least 0.8 is required" in capfd.readouterr().err
    assert scan.is_file()
    assert places.once() == 0, "without heatmaps the model is used"


# --- names


def test_another_scan_of_the_same_name_overwrites_nothing(places):
    places.scan("a.png", 10)
    assert places.once() == 0
    first = (places.out / "done" / "a.png").read_bytes()
    second = sha256_of(places.scan("a.png", 20))
    assert places.once() == 0
    name = f"a.{second[:12]}.png"
    assert places.files() == [
        *(f"done/{name}", "done/a.png"),
        *(f"results/{name}.json", "results/a.png.json"),
    ]
    assert (places.out / "done" / "a.png").read_bytes() == first
    assert sha256_of(places.out / "done" / name) == second == places.result(name)["sha256"]


def test_the_same_scan_again_gets_no_second_result(places, capfd):
    for _ in range(2):
        places.scan("a.png", 10)
        assert places.once() == 0
        assert len(capfd.readouterr().out.splitlines()) == 1, "the line of the result is printed again"
    assert places.files() == ["done/a.png", "results/a.png.json"]
    assert list(places.incoming.glob("*")) in ([], [places.incoming / ".mri-edge.lock"])
    places.scan("b.png", 10)  # the same content under another name
    assert places.once() == 0
    assert places.files() == ["done/a.png", "done/b.png", "results/a.png.json", "results/b.png.json"]


def test_a_failed_scan_may_be_tried_again(places):
    (places.incoming / "a.png").write_text("damaged")
    assert places.once() == 1
    (places.out / "failed" / "a.png").rename(places.incoming / "a.png")
    assert places.once() == 1
    assert places.files() == ["failed/a.png", "results/a.png.json"]
    places.scan("a.png", 10)  # sent again, complete
    assert places.once() == 0
    assert (places.out / "failed" / "a.png").read_text() == "damaged"


def test_files_of_others_in_the_way_are_never_overwritten(places, capfd):
    assert places.once() == 0
    digest = sha256_of(places.scan("a.png"))
    (places.out / "results" / "a.png.json").write_text("my notes")
    (places.out / "done" / f"a.{digest[:12]}.png").write_text("mine too")
    assert places.once() == 1
    assert "in the way" in capfd.readouterr().err
    assert (places.out / "results" / "a.png.json").read_text() == "my notes"
    assert (places.incoming / "a.png").exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode without control characters")
@pytest.mark.parametrize("name", ["Schädel.png", "ä\ndone b.png", "\udce9.png", "x" * 251 + ".png", "x." + "y" * 253])
def test_odd_names(places, capfd, name):
    digest = sha256_of(places.scan(name))
    assert places.once() == 0
    [line] = capfd.readouterr().out.splitlines()
    if len(name) < 100:  # a longer one is kept under a shorter name
        assert printable(name) in line
    [record] = [json.loads(path.read_bytes()) for path in (places.out / "results").iterdir()]
    assert record["sha256"] == digest == sha256_of(places.out / record["moved_to"])
    assert Path(record["file"]).name == name


# --- ends


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 0, "stopped"), (signal.SIGINT, 130, "interrupted")]
)
def test_watch_stops_cleanly_on_a_signal(places, started, number, code, words):
    for index in range(300):
        places.scan(f".{index:03d}.png", index % 256).rename(places.incoming / f"{index:03d}.png")
    wait_for(lambda: len(list((places.out / "done").iterdir())) > 5)
    status, out, err = end(started, number)
    assert status == code
    assert words in err
    assert "Traceback" not in err
    done = {path.name for path in (places.out / "done").iterdir()}
    assert len(done) < 300, "it was done before it was stopped: the test proved nothing"
    assert {path.name for path in (places.out / "results").iterdir()} == {f"{name}.json" for name in done}
    assert len(out.splitlines()) == len(done)
    assert not (places.out / ".at-hand.json").exists()


class Killed(BaseException):
    """The end of the program. Every later step raises it too, so that no cleanup reaches the disk."""


@pytest.fixture(params=["one disk", "two disks"])
def watch_in_steps(
    request: pytest.FixtureRequest, places: Places, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[int], None]], int]:
    """A function that runs a watch, calls another before each step that it takes on disk, and returns their number."""
    steps = 0
    before_step: Callable[[int], None] | None = None

    def record(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def step(path: Path, *arguments: Path, **options: object) -> object:
            nonlocal steps, before_step
            if before_step and Path(path).parent == places.incoming:
                steps += 1
                act, before_step = before_step, None  # what it does is no step
                try:
                    act(steps)
                finally:
                    before_step = act
                if request.param == "two disks" and name == "replace":
                    raise OSError(errno.EXDEV, "Invalid cross-device link")
            return function(path, *arguments, **options)

        monkeypatch.setattr(module, name, step)

    for module, name in ((os, "lstat"), (os, "rename"), (os, "replace"), (os, "unlink"), (atomic, "_copy")):
        record(module, name)

    def run_watch(act: Callable[[int], None]) -> int:
        nonlocal steps, before_step
        steps, before_step = 0, act
        try:
            places.once()
        finally:
            before_step = None
        return steps

    return run_watch


def kept_scans(places: Places) -> list[tuple[str, str]]:
    """Return the hash of each scan by its result, and by its content. Empty the output folder for the next run."""
    assert not [path for path in places.incoming.iterdir() if path.name != ".mri-edge.lock"]
    records = [json.loads(path.read_bytes()) for path in (places.out / "results").iterdir()]
    scans = [places.out / record["moved_to"] for record in records]
    found = [
        (record["sha256"], sha256_of(scan) if scan.exists() else "")
        for record, scan in zip(records, scans, strict=True)
    ]
    shutil.rmtree(places.out)
    return found


def test_a_scan_that_replaces_another_at_any_step_is_classified(places, watch_in_steps):
    """A sender may use a name again as soon as the result of the last scan is there."""
    old, new = (places.scan(f"{level}.png", level, places.incoming.parent).read_bytes() for level in (10, 200))
    digest = hashlib.sha256(new).hexdigest()

    def send(content: bytes) -> None:
        (places.incoming / ".sending").write_bytes(content)
        os.replace(places.incoming / ".sending", places.incoming / "a.png")

    for number in itertools.count(1):
        send(old)
        steps = watch_in_steps(lambda step, last=number: send(new) if step == last else None)
        if steps < number:
            break
        places.once()
        assert (digest, digest) in kept_scans(places), f"it came before step {number}"
    assert number > 6


def test_a_kill_at_any_step_leaves_the_scan_and_one_result(places, watch_in_steps):
    digest = sha256_of(places.scan("a.png"))

    def kill_at(last: int, step: int) -> None:
        if step >= last:
            raise Killed

    for number in itertools.count(1):
        places.scan("a.png")
        try:
            watch_in_steps(partial(kill_at, number))
            break
        except Killed:
            assert places.once() == 0
            assert kept_scans(places) == [(digest, digest)], f"it was killed before step {number}"
    assert number > 6


@pytest.mark.slow
def test_watch_gives_one_result_for_each_scan_although_it_is_killed(fake_bundle):
    """Run a smaller acceptance run, which checks every scan and prints its findings."""
    command = [sys.executable, CHECKOUT / "scripts" / "kill_watch.py", "--scans", "150", "--kills", "5"]
    done = subprocess.run([*command, "--model", fake_bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0" in done.stdout


@pytest.mark.parametrize(
    ("death", "code"),
    [("os.abort()", -signal.SIGABRT), ("(_ for _ in ()).throw(ArithmeticError())", 1)],
    ids=["a crash", "an error that nobody foresaw"],
)
def test_scans_that_end_the_program_each_time_are_put_aside(places, death, code):
    """A scan that crashes the decoder or exhausts the memory must not end every restart of the service."""
    for index, name in enumerate(("poison-1.png", "a.png", "poison-2.png", "b.png")):
        os.utime(places.scan(name, 10 * index), (index + 1, index + 1))  # the oldest is taken first
    deadly = f"""
import os, sys
from mri_edge import cli
from mri_edge.inference.classifier import Classifier
predict = Classifier.predict_frames
Classifier.predict_frames = lambda self, scan, **how: {death} if "poison" in str(scan) else predict(self, scan, **how)
sys.exit(cli.run(sys.argv[1:]))
"""
    command = [sys.executable, "-c", deadly, *places.command("--once", "--settle", "0")]
    runs = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(7)]
    assert [run.returncode for run in runs] == [code] * 6 + [1]
    assert "Traceback" not in runs[6].stderr
    for name in ("a.png", "b.png"):
        assert "label" in places.result(name)
    for name in ("poison-1.png", "poison-2.png"):
        assert "the program ended 3 times in a row" in str(places.result(name)["error"])
    assert not (places.out / ".at-hand.json").exists()
    assert [path for path in places.files() if "results" not in path] == [
        "done/a.png",
        "done/b.png",
        "failed/poison-1.png",
        "failed/poison-2.png",
    ]


def test_a_scan_without_enough_memory_waits_and_does_not_fail(places, capfd, monkeypatch):
    path = places.scan("a.png", 10)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", fail)
        assert places.once() == 1
    assert f"{path}: cannot read (out of memory). It stays where it is" in capfd.readouterr().err
    assert path.exists()
    assert places.files() == []
    assert places.once() == 0
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_a_scan_with_a_result_is_only_moved(places, capfd):
    """This is the state that a kill between the two steps leaves."""
    path = places.scan("a.png", 10)
    content = path.read_bytes()
    assert places.once() == 0
    written = (places.out / "results" / "a.png.json").read_bytes()
    path.write_bytes(content)
    (places.out / "done" / "a.png").unlink()
    (places.out / "done" / ".a.png.new-0123abcd").write_bytes(content[:10])  # a copy that a kill cut short
    capfd.readouterr()
    assert places.once() == 0
    assert "done/a.png" in capfd.readouterr().out
    assert (places.out / "results" / "a.png.json").read_bytes() == written
    assert places.files() == ["done/a.png", "results/a.png.json"]


# --- disks


def test_a_folder_that_cannot_be_used_is_waited_for(places, started):
    (places.out / "results").rmdir()
    (places.out / "results").write_text("a file")
    places.scan("a.png")
    _waiting(started, "Not a directory")
    assert (places.incoming / "a.png").exists()
    (places.out / "results").unlink()
    (places.out / "results").mkdir()
    wait_for((places.out / "done" / "a.png").exists)
    assert started.stderr.readline() == "mri-edge: the watch continues\n"  # and it logged nothing else in the meantime
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_it_stops_while_it_waits_for_a_disk(places, started):
    (places.out / "results").rmdir()
    (places.out / "results").write_text("a file")
    places.scan("a.png")
    started.stderr.readline()
    assert end(started)[0] == 0
    assert (places.incoming / "a.png").exists()


def test_scans_that_cannot_be_moved_do_not_hold_up_the_others(places, capfd):
    """There are more such scans than the limit that indicates a full disk, and they are older than the others."""
    stuck = [places.scan(f"{index}.png", index) for index in range(5)]
    flag = ["chattr", "+i", *stuck]
    if shutil.which("chattr") is None or subprocess.run(flag, capture_output=True, check=False).returncode:
        pytest.skip("no file can be made immutable here")
    try:
        process = places.start()
        for index in range(5, 20):
            places.scan(f"{index}.png", index)
        wait_for(lambda: len(list((places.out / "done").glob("*"))) == 15)
        code, _, err = end(process)
    finally:
        subprocess.run(["chattr", "-i", *stuck], check=True)
    assert code == 0
    assert "cannot be moved" in err
    assert len(err.splitlines()) <= 4, "the same trouble is said once"
    assert all(path.exists() for path in stuck)
    capfd.readouterr()
    assert places.once() == 0
    assert len(list((places.out / "done").iterdir())) == len(list((places.out / "results").iterdir())) == 20


def test_a_scan_that_may_not_be_read_waits(places, capfd):
    path = places.scan("secret.png")
    places.scan("a.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert places.once() == 1
    assert "Permission denied" in capfd.readouterr().err
    assert path.exists()
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_an_engine_that_fails_ends_it_and_the_scan_stays(places, monkeypatch, capfd):
    from mri_edge.errors import EngineError
    from mri_edge.testing import FakeEngine

    path = places.scan("a.png")
    monkeypatch.setattr(FakeEngine, "run", lambda *_: (_ for _ in ()).throw(EngineError("the device is gone")))
    assert places.once() == 4
    assert "the device is gone" in capfd.readouterr().err
    assert path.exists()
    assert places.files() == []


def test_once_does_not_wait_for_a_disk(places, capfd):
    assert places.once() == 0
    places.scan("a.png")
    shutil.rmtree(places.out / "results")
    (places.out / "results").write_text("a file")
    assert places.once() == 6
    assert (places.incoming / "a.png").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_nothing(tmp_path, fake_bundle, small_disk):
    """The output is on another, full file system: scans wait; once there is space they are moved across, each once."""
    places = Places(tmp_path, fake_bundle)
    places.out = small_disk / "out"
    process = places.start("--json")
    assert process.stderr is not None
    process.stderr.readline()
    for index in range(4):
        places.scan(f"{index}.png", index)
    wait_for(lambda: len(list((places.out / "done").iterdir())) == 4)
    filling = small_disk / "filling"
    with pytest.raises(OSError, match="No space left"), open(filling, "wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    for index in range(4, 12):
        places.scan(f"{index}.png", index)
    assert "No space left on device" in process.stderr.readline()
    time.sleep(0.3)
    assert process.poll() is None
    assert len(list((places.out / "done").iterdir())) == 4
    process.kill()  # as a service it is started again, on a disk that is still full
    process.communicate()
    process = places.start("--json")
    assert process.stderr is not None
    assert "watching" in process.stderr.readline()
    assert "No space left on device" in process.stderr.readline()
    filling.unlink()
    wait_for(lambda: len(list((places.out / "done").iterdir())) == 12)
    status, out, err = end(process)
    assert (status, err) == (0, "mri-edge: the watch continues\nmri-edge: stopped\n")
    assert sorted(Path(json.loads(line)["file"]).name for line in out.splitlines()) == sorted(
        f"{index}.png" for index in range(4, 12)
    )
    assert places.files() == sorted(file for i in range(12) for file in (f"done/{i}.png", f"results/{i}.png.json"))


def _waiting(process: subprocess.Popen[str], words: str) -> None:
    """Watch logs once, in one line, what it waits for, and keeps running."""
    assert process.stderr is not None
    said = process.stderr.readline()
    assert words in said
    assert "tries again" in said
    time.sleep(0.5)
    assert process.poll() is None


def test_a_watched_folder_that_is_missing_at_the_start_is_waited_for(places):
    """The share may be mounted after the service has started, and exit code 2 would stop the service permanently."""
    share = places.incoming.rename(places.incoming.with_name("share"))
    places.scan("a.png", folder=share)
    process = places.start()
    _waiting(process, "cannot list the folder (No such file or directory)")
    assert not places.out.exists(), "nothing is made below a folder whose disk may be missing"
    share.rename(places.incoming)
    wait_for((places.out / "done" / "a.png").exists)
    status, _, err = end(process)
    assert status == 0
    assert [line.split(" ")[1] for line in err.splitlines()] == ["watching", "the", "stopped"]
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_watch_waits_for_a_watched_folder_that_disappears(places, started):
    share = places.incoming.rename(places.incoming.with_name("share"))
    _waiting(started, "cannot list the folder")
    places.scan("a.png", folder=share)
    share.rename(places.incoming)
    wait_for((places.out / "done" / "a.png").exists)


@pytest.mark.parametrize("what", [".", "results", "done"])
def test_an_output_folder_that_was_removed_is_made_and_locked_again(places, started, capfd, what):
    places.scan("a.png")
    wait_for((places.out / "done" / "a.png").exists)
    shutil.rmtree(places.out / what)
    places.scan("b.png")
    _waiting(started, "No such file or directory")
    wait_for((places.out / "done" / "b.png").exists)
    assert places.result("b.png")["label"] == "no"
    assert places.once() == 2
    assert f"another mri-edge uses this folder (process {started.pid})" in capfd.readouterr().err
    places.incoming = places.incoming.parent / "other"
    places.incoming.mkdir()
    assert places.once() == 2, "the new output folder is locked too"
    _, _, err = end(started)
    assert [line.split(" ")[1] for line in err.splitlines()] == ["watching", "the", "stopped"]


def test_an_output_disk_is_waited_for_until_another_is_mounted(tmp_path, fake_bundle, small_disk):
    """The empty folder where the disk was mounted is no place for results."""
    places = Places(tmp_path, fake_bundle)
    places.out = small_disk / "out"
    process = places.start()
    assert process.stderr is not None
    assert "watching" in process.stderr.readline()
    subprocess.run(["umount", "-l", small_disk], check=True)
    places.scan("a.png")
    _waiting(process, "No such file or directory")
    time.sleep(1.5)  # the scan is tried again after a second
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small_disk], check=True)
    wait_for((places.out / "done" / "a.png").exists)
    assert end(process)[0] == 0
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_a_full_disk_at_the_start_is_waited_for(tmp_path, fake_bundle, small_disk):
    """The disk is too full to create the folders."""
    places = Places(tmp_path, fake_bundle)
    places.scan("a.png")
    places.out = small_disk / "out"
    subprocess.run(["mount", "-o", "remount,nr_inodes=4", small_disk], check=True)
    for index in range(3):
        (small_disk / f"{index}").touch()
    process = places.start()
    _waiting(process, "No space left on device")
    assert (places.incoming / "a.png").exists()
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", small_disk], check=True)
    wait_for((places.out / "done" / "a.png").exists)
    assert end(process)[0] == 0


@pytest.mark.parametrize("what", ["in", "out"])
def test_a_read_only_disk_is_waited_for(tmp_path, fake_bundle, small_disk, what):
    """The kernel may remount a file system read-only after an error; exit code 2 would stop the service for good."""

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=True)

    root = small_disk if what == "in" else tmp_path
    places = Places(root, fake_bundle)
    places.out = (tmp_path if what == "in" else small_disk) / "out"
    places.scan("a.png")
    remount("ro")
    assert places.once() == 6
    process = places.start()
    _waiting(process, "Read-only file system")
    remount("rw")
    wait_for((places.out / "done" / "a.png").exists)
    assert end(process)[0] == 0
    assert not any(places.incoming.glob("*.png"))


def test_a_watch_that_waits_to_start_can_be_stopped_and_notifies_systemd(places, tmp_path):
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("systemd is Linux's")
    places.incoming.rmdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end_of_systemd:
        end_of_systemd.bind(str(tmp_path / "notify"))
        end_of_systemd.settimeout(30)
        process = places.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        # Else systemd ends it after 90 seconds, and gives up after some starts.
        assert [end_of_systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        assert end(process)[0] == 0


def test_a_limit_on_file_sizes_is_a_full_disk(places):
    """RLIMIT_FSIZE prevents writing the result, which is not an error of the scan."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    places.scan("a.png")
    done = subprocess.run(
        [PROGRAM, *places.command("--once", "--settle", "0")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 2  # "watching ...", and why not
    assert (places.incoming / "a.png").exists()
    assert places.files() == []


def test_an_error_of_the_model_never_fails_a_scan(places, tiny_manifest, tmp_path, monkeypatch, capfd):
    """Scans stay in place whatever the model raises and however often the service restarts."""
    from mri_edge.testing import FakeEngine

    places.scan("a.png")
    monkeypatch.setattr(FakeEngine, "run", lambda *_: (_ for _ in ()).throw(ValueError("operands of other shapes")))
    for _ in range(5):
        assert places.once() == 4
        err = capfd.readouterr().err
        assert "the model fails on a blank picture (operands of other shapes)" in err
        assert len(err.splitlines()) == 1
    assert (places.incoming / "a.png").exists()
    assert places.files() == []


def test_a_bundle_with_a_plane_of_another_model_moves_no_scan(places, tmp_path, capfd):
    """A novelty.npy of another width, listed with its right hash, once moved six good scans to failed/."""
    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.bundle import Bundle

    places.model = tmp_path / "vgg16"
    shutil.copytree(Bundle.open("vgg16").folder, places.model)
    with rewrite_bundle(Bundle.open(places.model)) as writer:
        plane = io.BytesIO()
        np.save(plane, np.zeros((3, 7), np.float32))
        writer.add_document("novelty.npy", plane.getvalue())
    for index in range(6):
        places.scan(f"{index}.png", 10 * index)
    for _ in range(4):
        assert places.once() in (3, 4)
        assert "Traceback" not in capfd.readouterr().err
    assert len(list(places.incoming.glob("*.png"))) == 6
    assert not [name for name in places.files() if name.startswith(("failed", "results"))]


@pytest.mark.parametrize("log_too", [False, True])
def test_a_full_disk_under_standard_output_stops_nothing(places, log_too):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for index in range(3):
        places.scan(f"{index}.png", index)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [PROGRAM, *places.command("--once", "--json")],
            stdout=full,
            stderr=full if log_too else subprocess.PIPE,
            check=False,
        )
    assert places.files() == sorted(name for i in range(3) for name in (f"done/{i}.png", f"results/{i}.png.json"))
    if not log_too:
        assert done.returncode == 0
        assert done.stderr.count(b"cannot write the output") == 1
        assert len(done.stderr.splitlines()) == 2  # "watching ...", and that


# --- two at once, wrong use, systemd


def test_a_second_watch_on_a_folder_is_refused(places, started, tmp_path, capfd):
    for out in (places.out, tmp_path / "other"):
        places.out = out
        assert places.once() == 2
        err = capfd.readouterr().err
        assert f"another mri-edge uses this folder (process {started.pid})" in err
        assert len(err.splitlines()) == 1


def test_a_file_system_without_locks_is_reported(places, monkeypatch, capfd):
    fcntl = pytest.importorskip("fcntl", reason="locks of POSIX")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    places.scan("a.png")
    assert places.once() == 0
    assert "this file system has no locks" in capfd.readouterr().err


def test_an_unreadable_result_is_not_written_again(places, monkeypatch, capfd):
    """While the share fails, watch cannot know whether the scan has a result, so it waits."""
    content = places.scan("a.png").read_bytes()
    assert places.once() == 0
    (places.incoming / "a.png").write_bytes(content)
    read = Path.read_bytes

    def fail(path):
        if path.name == "a.png.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert places.once() == 6
    assert "cannot read (Input/output error)" in capfd.readouterr().err
    monkeypatch.undo()
    assert (places.incoming / "a.png").exists()
    assert places.files() == ["done/a.png", "results/a.png.json"]


def test_the_lock_is_released_when_the_program_ends(places, started):
    started.kill()
    started.wait()
    assert places.once() == 0


def test_wrong_folders(places, tmp_path, capfd):
    def refused(words: str) -> None:
        assert places.once() == 2
        err = capfd.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1

    places.out = tmp_path / "file"
    places.out.write_text("")
    refused("is a file, not a folder")
    places.out = tmp_path / "out"
    places.incoming = tmp_path / "none"
    refused("no such folder")
    places.incoming = places.out / "done"
    places.incoming.mkdir(parents=True)
    refused("Name two different folders")


def test_output_may_lie_inside_the_watched_folder(places):
    places.out = places.incoming
    places.scan("a.png")
    assert places.once() == 0
    assert (places.incoming / "done" / "a.png").exists()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")
def test_systemd_is_notified(places, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end_of_systemd:
        end_of_systemd.bind(str(tmp_path / "notify"))
        end_of_systemd.settimeout(30)
        process = places.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert end_of_systemd.recv(100) == b"READY=1"
        assert end_of_systemd.recv(100) == b"WATCHDOG=1"
        process.terminate()
        process.communicate(timeout=30)
        last = b""
        while last != b"STOPPING=1":
            last = end_of_systemd.recv(100)
    assert process.returncode == 0


def test_frames_after_a_damaged_one_have_an_error_each(places, monkeypatch):
    places.scan("a.png")
    predict_frames = Classifier.predict_frames

    def damaged(classifier: Classifier, source: object, **options: object) -> Iterator[Prediction]:
        [prediction] = predict_frames(classifier, source, **options)
        yield replace(prediction, frames=3)
        raise InputError("damaged frame", code="damaged")

    with Classifier.load(places.model) as classifier:
        watch = Watch(classifier, places.incoming, Outbox(places.out), settle_s=0)
        monkeypatch.setattr(Classifier, "predict_frames", damaged)
        records = list(watch.records(once=True, every_s=0.01))
    assert [(record.get("index"), record.get("code")) for record in records] == [
        (0, None),
        (1, "damaged"),
        (2, "damaged"),
    ]
    assert "frame 2 was not read, because frame 1 cannot be read" in records[2]["error"]


def test_systemd_is_notified_between_the_frames_of_a_scan(places, monkeypatch):
    """The heatmaps of a volume take longer than systemd waits."""
    monkeypatch.setattr(Watch, "_heartbeat", lambda watch: beats.append("beat"))
    beats: list[str] = []
    places.scan("a.png")
    predict_frames = Classifier.predict_frames

    def three_frames(classifier: Classifier, source: object, **options: object) -> Iterator[Prediction]:
        for index in range(3):
            beats.append("frame")
            [prediction] = predict_frames(classifier, source, **options)
            yield replace(prediction, index=index, frames=3)

    with Classifier.load(places.model) as classifier:
        watch = Watch(classifier, places.incoming, Outbox(places.out), settle_s=0)
        monkeypatch.setattr(Classifier, "predict_frames", three_frames)
        assert len(list(watch.records(once=True, every_s=0.01))) == 3
    first = beats.index("frame")
    assert beats[first : first + 6] == ["frame", "beat"] * 3


@pytest.mark.parametrize(("stop_at", "results"), [(1, 0), (2, 3)], ids=["one is left", "the last one"])
def test_a_stop_does_not_wait_for_all_frames_of_a_scan_and_is_no_crash(places, monkeypatch, stop_at, results):
    """Their heatmaps take longer than a service manager waits before it kills the program."""
    path = places.scan("a.png")
    predict_frames = Classifier.predict_frames

    def three_frames(classifier: Classifier, source: object, **options: object) -> Iterator[Prediction]:
        for index in range(3):
            if index == stop_at:
                watch.stop()
            [prediction] = predict_frames(classifier, source, **options)
            yield replace(prediction, index=index, frames=3)

    with Classifier.load(places.model) as classifier:
        watch = Watch(classifier, places.incoming, Outbox(places.out), settle_s=0)
        monkeypatch.setattr(Classifier, "predict_frames", three_frames)
        assert len(list(watch.records())) == results
    assert path.exists() == (results == 0)
    assert not (places.out / ".at-hand.json").exists()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small scan take as many pieces as a large one."""
    monkeypatch.setattr(atomic, "_CHUNK", 10)


def test_systemd_is_notified_while_a_large_scan_is_read(places, small_pieces, monkeypatch):
    """It is hashed, compared with the scan that was moved before, and copied to another disk."""
    content = places.scan("a.png").read_bytes()
    pieces = len(content) // 10
    beats: list[int] = []
    monkeypatch.setattr(Watch, "_heartbeat", lambda watch: beats.append(1))

    def replace_on_one_disk(source: Path, target: Path, replace: Callable[..., None] = os.replace) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    assert places.once() == 0
    hashed = len(beats)
    assert hashed >= pieces
    places.scan("a.png")
    assert places.once() == 0
    hashed_and_compared = len(beats) - hashed
    assert hashed_and_compared >= hashed + pieces
    monkeypatch.setattr(os, "replace", replace_on_one_disk)
    places.scan("a.png")
    assert places.once() == 0
    assert len(beats) - hashed - hashed_and_compared >= hashed_and_compared + pieces


@pytest.mark.parametrize("seen_before", [False, True], ids=["a new scan", "one that is compared"])
def test_a_stop_does_not_wait_for_the_hash_of_a_large_scan(places, small_pieces, monkeypatch, seen_before):
    path = places.scan("a.png")
    if seen_before:
        assert places.once() == 0
        places.scan("a.png")
    pieces = len(path.read_bytes()) // 10
    stop_at = pieces + 5 if seen_before else 5
    beats = 0

    def beat(watch: Watch) -> None:
        nonlocal beats
        beats += 1
        if beats == stop_at:
            watch.stop()

    monkeypatch.setattr(Watch, "_heartbeat", beat)
    with Classifier.load(places.model) as classifier:
        watch = Watch(classifier, places.incoming, Outbox(places.out), settle_s=0)
        assert list(watch.records()) == []
    assert beats == stop_at
    assert path.exists()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")
def test_a_notify_socket_that_nobody_reads_does_not_block(tmp_path):
    program = "from mri_edge.services.systemd import notify\nfor _ in range(5000): notify('WATCHDOG=1')"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end_of_systemd:
        end_of_systemd.bind(str(tmp_path / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        subprocess.run([sys.executable, "-c", program], env=environment, timeout=30, check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_steady(tiny_bundle):
    """This runs real ONNX Runtime; the acceptance run takes 10,000 scans."""
    command = [sys.executable, CHECKOUT / "scripts" / "watch_memory.py", "--scans", "300", "--model", tiny_bundle]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 scans" in done.stdout
