"""`archive` on a cluster of two nodes: every input has its rows, equal to those of `predict`, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra archive")

import pyarrow.dataset as pads

from benchmarks.archive_campaign import campaign
from benchmarks.processes import free_port
from mri_edge import Classifier
from mri_edge.cli import run
from mri_edge.services.archive import job

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = sorted(EXAMPLES.glob("*.jpg"))
SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
# In every process of the cluster, reading a file of this name kills the process, as a crash of a decoder does.
CRASHES = """
import os
import mri_edge.scans.readers as readers
real = readers.read_each
def read(source, *arguments, **options):
    if isinstance(source, str) and "crash" in os.path.basename(source):
        os.kill(os.getpid(), 9)
    return real(source, *arguments, **options)
readers.read_each = read
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes that it finds in /proc"),
]

Archive = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster with two nodes of one core, one of which claims to have a GPU."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(CRASHES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **SECRETS}.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for gpus in (0, 1):
                cluster.add_node(num_cpus=1, num_gpus=gpus)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture
def archive(address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Archive:
    """Run the command on the cluster: returns the exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        command = ["archive", *map(str, arguments), "--model", "small", "--address", address]
        code = run([*command, "--out", str(tmp_path / "out")])
        return code, *capfd.readouterr()

    return call


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows in the order of the inputs, without what differs between two runs."""
    table = pads.dataset(str(out / "results"), partitioning="hive").to_table().sort_by("input")
    found = table.drop_columns(["latency_ms"] if "latency_ms" in table.column_names else []).to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in found]


def only_error(err: str) -> str:
    """The one line of an error, after lines of the progress: there are more of them on a slow machine."""
    lines = err.splitlines()
    assert all(line.startswith("mri-edge: ") for line in lines), err
    (line,) = (line for line in lines if line.startswith("mri-edge: error: "))
    return line


def test_rows_are_the_results_of_predict_and_a_crash_is_one_of_them(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans = Path("scans")  # relative: the nodes must find it all the same
    scans.mkdir()
    for number, path in enumerate(DEMO):
        shutil.copy(path, scans / f"{number}.jpg")
    shutil.copy(DEMO[0], scans / "crash.jpg")
    (scans / "bad.jpg").write_text("no picture")
    with zipfile.ZipFile("study.zip", "w") as packed, tarfile.open("study.tar", "w") as plain:
        packed.write(DEMO[3], "1/phantom.jpg")
        plain.add(scans / "bad.jpg", "2/bad.jpg")
    Path("list.txt").write_text(f"{DEMO[4]}\ngone.jpg\n")

    code, out, err = archive("scans", "study.zip", "@list.txt", "study.tar")
    assert code == 1
    assert "Research use only" in out
    assert "Ray" not in out + err
    assert "raylet" not in out + err
    found = rows(tmp_path / "out")
    with Classifier.load("small") as classifier:
        paths = [*(f"scans/{number}.jpg" for number in range(6)), "scans/bad.jpg"]
        expected = [json.loads(json.dumps(result.to_dict())) for result in classifier.predict_batches(paths)]
    by_name = {row["file"]: row for row in found}
    assert len(by_name) == len(found) == 12
    for record in expected:
        row = by_name[record["file"]]
        for key in ("label", "threshold", "model", "model_hash", "engine", "provider", "error", "hint", "code"):
            assert row.get(key) == record.get(key)
        assert dict(row.get("probabilities", ())) == record.get("probabilities", {})
    assert {row["file"]: row["code"] for row in found if row["outcome"] == "failed"} == {
        "scans/bad.jpg": "unsupported",
        "scans/crash.jpg": "crashed",
        "study.tar/2/bad.jpg": "unsupported",
        "gone.jpg": "missing",
    }
    assert by_name["study.tar/2/bad.jpg"]["error"].startswith("study.tar/2/bad.jpg: ")
    assert by_name["study.zip/1/phantom.jpg"]["label"] == by_name["scans/3.jpg"]["label"]

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["inputs"], summary["rows"], summary["failed"]) == (12, 12, 4)
    assert summary["failures"] == {"unsupported": 2, "crashed": 1, "missing": 1}
    assert sum(summary["histogram"]) == sum(summary["labels"].values()) == 8
    page = (tmp_path / "out" / "summary.html").read_text()
    assert "Research use only" in page
    assert "crashed" in page

    # The same command again finds nothing to do; another window is refused.
    before = sorted((tmp_path / "out" / "results").rglob("*.parquet"))
    code, _, err = archive("scans", "study.zip", "@list.txt", "study.tar")
    assert code == 1
    assert "continuing with the list of 12 inputs" in err
    assert sorted((tmp_path / "out" / "results").rglob("*.parquet")) == before
    code, _, err = archive("scans", "study.zip", "@list.txt", "study.tar", "--window", "auto")
    assert code == 2
    assert "was begun with --window file, and this run has auto" in err


def test_scans_are_read_by_tasks_for_a_model_on_gpus(archive, tmp_path, monkeypatch):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, source in (
        ("a.jpg", DEMO[0]),
        ("b.dcm", EXAMPLES / "dicom" / "mni152-slice-2.dcm"),
        ("crash.jpg", DEMO[1]),
    ):
        shutil.copy(source, scans / name)
    (scans / "bad.jpg").write_text("no picture")
    real = job._settled
    # The model runs on the CPU all the same: the GPU of the cluster is only a number.
    monkeypatch.setattr(job, "_settled", lambda *arguments: (real(*arguments)[0], True))
    code, _, err = archive(scans)
    assert code == 1, err
    with Classifier.load("small") as classifier:
        expected = {path: classifier.predict(path).label for path in (str(scans / "a.jpg"), str(scans / "b.dcm"))}
    expected |= {str(scans / "bad.jpg"): "unsupported", str(scans / "crash.jpg"): "crashed"}
    assert {row["file"]: row.get("label", row.get("code")) for row in rows(tmp_path / "out")} == expected


def test_each_series_has_a_row_even_if_it_lies_in_two_folders_and_a_crash_sets_its_folder_aside(archive, tmp_path):
    pytest.importorskip("pydicom")
    study = tmp_path / "study"
    for name in ("a", "b", "c", "d"):
        (study / name).mkdir(parents=True)
    for number, path in enumerate(sorted((EXAMPLES / "dicom").iterdir())):
        shutil.copy(path, study / "ac"[number % 2])
    shutil.copy(DEMO[0], study / "b")
    with Classifier.load("small") as classifier:
        expected = [result.to_dict() for result in classifier.predict_series(study, plane="any", recursive=True)]
    shutil.copy(DEMO[1], study / "d" / "crash.jpg")
    code, _, err = archive(study, "--by", "series", "--plane", "any")
    assert code == 1
    assert "joined: 1 folder with others" in err
    found = rows(tmp_path / "out")
    assert [row["code"] for row in found if row["outcome"] == "failed"] == ["crashed"]
    answered = {row["id"]: row for row in found if row["outcome"] == "answered"}
    assert len(answered) == len(expected) == len(found) - 1
    for record in expected:
        row = answered[record["id"]]
        assert (row["score"], row["count"]) == (record["score"], record["count"])
        assert [piece["file"] for piece in row["slices"]] == [piece["file"] for piece in record["slices"]]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """The endpoint of an S3 server with the demo scans in ``archive/mr/``."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    log = (tmp_path / "moto.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    endpoint = f"127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{endpoint}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "moto.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        client = boto3.client("s3", endpoint_url=f"http://{endpoint}")
        client.create_bucket(Bucket="archive")
        for number, path in enumerate(DEMO):
            client.upload_file(str(path), "archive", f"mr/{number % 2}/scan-{number}.jpg")
        client.put_object(Bucket="archive", Key="mr/notes.txt", Body=b"text")
        client.put_object(Bucket="archive", Key="mr/0/bad.jpg", Body=b"text")
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as packed:
            packed.write(DEMO[0], "1/scan.jpg")
        client.upload_file(str(tmp_path / "s.zip"), "archive", "mr/s.zip")
        yield endpoint
    finally:
        server.kill()
        server.wait()
        log.close()


def test_objects_of_s3_are_read(archive, bucket, tmp_path):
    code, _, err = archive(f"s3://archive/mr?endpoint_override={bucket}&scheme=http")
    assert code == 1, err
    found = {row["file"]: row.get("label", row.get("code")) for row in rows(tmp_path / "out")}
    with Classifier.load("small") as classifier:
        labels = {
            f"s3://archive/mr/{number % 2}/scan-{number}.jpg": classifier.predict(path).label
            for number, path in enumerate(DEMO)
        }
    assert found == labels | {
        "s3://archive/mr/0/bad.jpg": "unsupported",
        "s3://archive/mr/s.zip/1/scan.jpg": labels["s3://archive/mr/0/scan-0.jpg"],
    }


def test_a_series_in_two_folders_of_a_bucket_or_of_a_zip_file_has_one_row(archive, bucket, tmp_path):
    pytest.importorskip("pydicom")
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=f"http://{bucket}")
    slices = sorted((EXAMPLES / "dicom").iterdir())
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as packed:
        for number, path in enumerate(slices):
            client.upload_file(str(path), "archive", f"dicom/{number % 2}/{path.name}")
            packed.write(path, f"{number % 2}/{path.name}")
    address = f"s3://archive/dicom?endpoint_override={bucket}&scheme=http"
    code, _, err = archive(address, tmp_path / "study.zip", "--by", "series", "--plane", "any")
    assert code == 0, err
    assert "joined: 2 folders" in err
    with Classifier.load("small") as classifier:
        expected = [result.to_dict() for result in classifier.predict_series(EXAMPLES / "dicom", plane="any")]
    of_bucket, of_zip = [], []
    for row in rows(tmp_path / "out"):
        (of_bucket if row["slices"][0]["file"].startswith("s3://") else of_zip).append(row)
    for found in (of_bucket, of_zip):
        assert {row["id"]: (row["score"], row["count"]) for row in found} == {
            record["id"]: (record["score"], record["count"]) for record in expected
        }
        assert len(found) == len(expected)


def test_a_model_that_is_missing_on_the_workers_is_refused_in_one_line(
    address, tiny_bundle, tmp_path, capfd, monkeypatch
):
    real = job._classify

    def remove_first(*arguments: Any) -> None:
        tiny_bundle.rename(tmp_path / "elsewhere")
        real(*arguments)

    monkeypatch.setattr(job, "_classify", remove_first)
    command = ["archive", str(DEMO[0]), "--model", str(tiny_bundle), "--address", address]
    assert run([*command, "--out", str(tmp_path / "out")]) == 3
    assert str(tiny_bundle) in only_error(capfd.readouterr().err)


def test_an_address_without_a_cluster_is_refused(tmp_path, capfd):
    command = ["archive", str(DEMO[0]), "--model", "small", "--address", "127.0.0.1:1", "--out", str(tmp_path / "out")]
    assert run(command) == 2
    assert "no cluster of Ray answers" in capfd.readouterr().err


def test_a_full_disk_ends_the_run_and_the_next_one_continues(address, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    command = ["archive", *map(str, DEMO), "--model", "small", "--address", address, "--out", str(out)]
    real = job._classify

    def fill_first(*arguments: Any) -> None:
        with suppress(OSError), open(out / "filler", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        real(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(job, "_classify", fill_first)
            assert run(command) == 6
        assert "cannot write (No space left on device)" in only_error(capfd.readouterr().err)
        (out / "filler").unlink()
        assert run(command) == 0
        assert [row["file"] for row in rows(out)] == [str(path) for path in DEMO]
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)


def test_every_input_has_one_row_after_kills_of_a_worker_a_node_and_the_driver(tmp_path):
    report = campaign(tmp_path, 240, ["worker", "driver", "node"])
    assert report.succeeded, report
    assert report.kills.total() >= 2, report  # a slow machine may end before the last kill
