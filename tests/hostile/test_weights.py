"""Hostile weight files are refused in one line, with little memory and time, and none of their code runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")

PROGRAM = Path(__file__).with_name("craft_weights.py")
LARGEST_RISE, LONGEST = 200, 20  # MB, seconds
WORDS = {
    "calls mkdir": "asks for posix.mkdir",
    "calls eval": "asks for builtins.eval",
    "calls numpy.load": "asks for numpy.load",
    "an array of objects": "array of 'O8'",
    "an array of records": "array of 'V4'",
    "group in itself": "linked from two places, or into itself",
    "arrays of 6 GB": "unpacks to",
    "archive of zeros": "unpacks to",
    "header of 1 GB": "unpacks to",
    "member of 2 GB before it": "unpacks to",
    "key that takes for ever to hash": "keys are not text",
    "pointer": "is a Git LFS pointer, not the weights. Run 'git lfs pull'",
    "pipe": "is not a file",
    "folder": "is not a file",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    command = [sys.executable, str(PROGRAM), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / "marker").exists()
    return json.loads(done.stdout)


def test_each_is_refused_in_one_line(found):
    assert {name: words for name, (_, _, words) in found.items() if words == "read" or "\n" in words} == {}
    for name, words in WORDS.items():
        assert words in found[name][2], name


def test_none_takes_much_memory_or_time(found):
    assert {name: rise for name, (rise, _, _) in found.items() if rise > LARGEST_RISE} == {}
    assert {name: seconds for name, (_, seconds, _) in found.items() if seconds > LONGEST} == {}
