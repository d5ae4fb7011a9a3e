"""What a cold ``predict`` of a JPEG imports and compiles, compared with the shortest ONNX Runtime script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mri_edge.cli
from mri_edge.bundles.bundle import EMBEDDED
from mri_edge.device.native import paused_collection

CHECKOUT = Path(__file__).parents[2]
SCAN = CHECKOUT / "examples" / "phantom-1.jpg"
BARE = [CHECKOUT / "scripts" / "measured" / "bare_onnxruntime.py", EMBEDDED / "small" / "model.int8.onnx", 0, SCAN]
PREDICT = ["-m", "mri_edge", "predict", SCAN, "--json", "--model", "small"]
# Modules that only other inputs and other options need; each takes about a millisecond.
NEEDLESS = {
    *("shutil", "zipfile", "csv", "lzma", "bz2", "unicodedata", "decimal", "fractions", "logging.handlers"),
    *("PIL.PngImagePlugin", "PIL.GifImagePlugin", "PIL.BmpImagePlugin", "PIL.PpmImagePlugin", "PIL.ImagePalette"),
    *("mri_edge.bundles.archive", "mri_edge.storage.atomic", "mri_edge.scans.intensity", "importlib.metadata"),
}
MOST_EXTRA = 0.4  # of the time of the imports of the script, for those that only predict has; 0.25 was measured


def _python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def _import_times(*arguments: object) -> dict[str, int]:
    """Return the microseconds that the import of each module takes, without the modules that it imports."""
    best: dict[str, int] = {}
    for _ in range(5):
        for line in _python("-X", "importtime", *arguments).stderr.splitlines():
            if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
                best[found[2]] = min(best.get(found[2], int(found[1])), int(found[1]))
    return best


def test_imports_of_predict_take_little_longer_than_those_of_the_shortest_script() -> None:
    ours, bare = _import_times(*PREDICT), _import_times(*BARE)
    extra = {module: time for module, time in ours.items() if module not in bare}
    longest = sorted(extra.items(), key=lambda item: -item[1])[:10]
    assert sum(extra.values()) <= MOST_EXTRA * sum(bare.values()), longest
    assert NEEDLESS & extra.keys() == set()


def test_predict_compiles_no_methods_of_dataclasses() -> None:
    """Each class would take 0.3 ms; see ``mri_edge.records``."""
    code = f"""
import sys
from mri_edge.cli import run
from mri_edge.records import _init
run({list(map(str, PREDICT[2:]))!r})
modules = [module for name, module in sys.modules.items() if name.startswith("mri_edge")]
classes = {{value for module in modules for value in vars(module).values() if isinstance(value, type)}}
ours = [kind for kind in classes if kind.__module__.startswith("mri_edge") and "__dataclass_fields__" in vars(kind)]
print(len(ours) > 20, [kind.__qualname__ for kind in ours if vars(kind)["__init__"] is not _init], file=sys.stderr)
"""
    assert _python("-c", code).stderr == "True []\n"


def test_collector_is_paused_and_runs_again() -> None:
    code = """
import gc
from mri_edge.device.native import paused_collection
try:
    with paused_collection():
        inside = gc.isenabled()
        raise ValueError
except ValueError:
    print(inside, gc.isenabled(), gc.get_freeze_count() > 0)
"""
    assert _python("-c", code).stdout == "False True True\n"
    assert paused_collection is mri_edge.cli.paused_collection


EXIT = """
import atexit, sys, threading
from mri_edge import cli
atexit.register(print, "registered", file=sys.stderr)
class Kept:
    def __del__(self):
        print("freed", file=sys.stderr)
kept = Kept()
cli.run = lambda arguments: 3
{more}
sys.stdout.write("written")
cli.main()
"""


@pytest.mark.parametrize(
    ("more", "freed"),
    [("", False), ("threading.Thread(target=threading.Event().wait, args=(0.5,)).start()", True)],
    ids=["alone", "beside a thread"],
)
def test_exit_writes_output_and_runs_handlers_but_frees_nothing(more: str, freed: bool) -> None:
    done = subprocess.run([sys.executable, "-c", EXIT.format(more=more)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == "written"
    assert ("registered" in done.stderr, "freed" in done.stderr) == (True, freed)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_exit_reports_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", EXIT.format(more="")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 120  # as Python itself


THREADS = """
import os
from mri_edge import cli
def run(arguments):
    import numpy
    print(len(os.listdir("/proc/self/task")))
    return 0
cli.run = run
cli.main([])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("wanted", [None, "2"])
def test_numpy_starts_no_threads_unless_the_user_asks(wanted: str | None) -> None:
    """They would keep cores busy that ``--threads`` did not allow."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": wanted} if wanted else {}
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == min(int(wanted or 1), os.cpu_count() or 1)


OPENING = """
import sys, time
from pathlib import Path
from mri_edge.engines import ModelFile, open_engine
import onnxruntime
model = ModelFile.read(Path(sys.argv[1]))
start, used = time.perf_counter(), time.process_time()
engines = [open_engine(model, engine="onnxruntime", provider="cpu", threads=2) for _ in range(5)]
print((time.process_time() - used) / (time.perf_counter() - start))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_only_one_thread_is_busy_while_a_model_is_opened() -> None:
    """Threads that wait actively for the first run took another 0.7 of a core from the imports of a cold predict."""
    assert float(_python("-c", OPENING, EMBEDDED / "lite" / "model.int8.onnx").stdout) < 1.4  # 1.12 measured
