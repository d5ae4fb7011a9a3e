"""The house: which room may import which, what is installed, how each file begins."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = {"runtime": "mri_edge", "train": "mri_edge.train", "export": "mri_edge.export"}
YARDS = ("tests", "benchmarks", "scripts")

# room -> the rooms that it may import, itself apart
ARROWS = {"runtime": set(), "train": {"runtime"}, "export": {"runtime"}}

# What `mri-edge predict` may import as it starts, and what no runtime file may import at all.
LIGHT = {"numpy", "PIL", "click"} | set(sys.stdlib_module_names)
HEAVY = {"tensorflow", "keras", "torch", "jax", "onnx", "tf2onnx", "sklearn", "scipy", "matplotlib", "pandas"}


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (CHECKOUT / folder).rglob("*.py"))


def _id(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def _module(path: Path) -> str:
    """``runtime/engines/litert.py`` -> ``mri_edge.engines.litert``."""
    room, *inner = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join([ROOMS[room], *(part for part in inner if part != "__init__")])


def _room_of(module: str) -> str | None:
    """The room that a module lives in; None for other people's modules."""
    if module.split(".", maxsplit=1)[0] != "mri_edge":
        return None
    second = module.split(".")[1:2]
    return second[0] if second and second[0] in ROOMS and second[0] != "runtime" else "runtime"


def _imports(path: Path, *, top_only: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Each module that a file imports: (absolute name, line, whether it was written as relative)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = _module(path).split(".") if path.name == "__init__.py" else _module(path).split(".")[:-1]
    for node in _at_top(tree.body) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield one.name, node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*stem, *([node.module] if node.module else [])])
            for one in node.names:  # `from mri_edge import train` imports mri_edge.train
                yield f"{base}.{one.name}", node.lineno, bool(node.level)


def _at_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: functions are left out, and what only type checkers read."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_top(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _at_top(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _at_top(handler.body)


@pytest.mark.parametrize("path", _sources(*ROOMS), ids=_id)
def test_rooms_import_along_the_arrows(path: Path) -> None:
    room = path.relative_to(CHECKOUT).parts[0]
    for module, line, relative in _imports(path):
        target = _room_of(module)
        where = f"{_id(path)}:{line}: import of {module}"
        if target is None:
            assert module.split(".")[0] not in {*ROOMS, *YARDS}, f"{where}: not a package of this name"
        elif target == room:
            assert relative, f"{where}: inside a room imports are relative"
        else:
            assert target in ARROWS[room], f"{where}: {room} may import {ARROWS[room] or 'no other room'}"
            assert not relative, f"{where}: across rooms imports are absolute"


@pytest.mark.parametrize("path", _sources("runtime"), ids=_id)
def test_runtime_starts_light_and_never_imports_the_training_stack(path: Path) -> None:
    for module, line, relative in _imports(path, top_only=True):
        assert relative or module.split(".")[0] in LIGHT, f"{_id(path)}:{line}: import {module} inside a function"
    for module, line, _ in _imports(path):
        assert module.split(".")[0] not in HEAVY, f"{_id(path)}:{line}: {module} is not of the runtime"


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("*/command.py")), ids=_id)
def test_commands_import_their_libraries_inside_functions(path: Path) -> None:
    for module, line, _ in _imports(path, top_only=True):
        first = module.split(".")[0]
        assert first in LIGHT | {"mri_edge"}, f"{_id(path)}:{line}: import {module} inside a function"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside functions neither; only the public list names modules that need it."""
    modules = {_module(path): path for path in _sources(*ROOMS) if path != CHECKOUT / "runtime" / "__init__.py"}

    def owner(name: str) -> str | None:
        parts = name.split(".")
        return next((one for end in range(len(parts), 0, -1) if (one := ".".join(parts[:end])) in modules), None)

    needs = {
        module: {home for name, _, _ in _imports(path) if (home := owner(name)) is not None} - {module}
        for module, path in modules.items()
    }
    assert "mri_edge.errors" in needs["mri_edge.bundle"]
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_the_walk_sees_what_it_looks_for(tmp_path: Path) -> None:
    """The tests above would also pass if the walk saw nothing."""
    names = {(module, relative) for module, _, relative in _imports(CHECKOUT / "runtime" / "bundle.py")}
    assert {("mri_edge.files.sha256_of", True), ("os", False), ("pathlib.Path", False)} <= names
    nested = {module for module, _, _ in _imports(CHECKOUT / "runtime" / "engines" / "litert.py")}
    assert {"mri_edge.errors.EngineError", "ai_edge_litert.interpreter.Interpreter"} <= nested
    top = {module for module, _, _ in _imports(CHECKOUT / "runtime" / "engines" / "litert.py", top_only=True)}
    assert "ai_edge_litert.interpreter.Interpreter" not in top
    assert _room_of("mri_edge.train.split.Split") == "train"
    assert _room_of("mri_edge.split.Split") == _room_of("mri_edge") == "runtime"
    assert _room_of("mri_edges") is None


def test_every_folder_with_code_is_an_installed_package() -> None:
    """A folder that is missing from the list works when installed editable and is absent from the wheel."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    tables = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in _sources(*ROOMS)}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert sorted(tables["packages"]) == sorted(_module(folder / "__init__.py") for folder in folders)
    assert tables["package-dir"] == {package: room for room, package in ROOMS.items()}


@pytest.mark.parametrize("path", _sources(*ROOMS, *YARDS), ids=_id)
def test_every_file_says_in_its_first_line_what_it_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert text.startswith('"""'), "the first line is the docstring"
    assert docstring.partition("\n")[0].endswith((".", ":", "?")), "its first line is a whole sentence"


@pytest.mark.parametrize("path", _sources(*ROOMS), ids=_id)
def test_only_the_command_line_exits(path: Path) -> None:
    if _id(path) == "runtime/cli.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called not in ("sys.exit", "os._exit", "exit", "quit"), f"{_id(path)}:{node.lineno}: raise an error"


def test_the_folder_cannot_be_imported_under_its_own_name() -> None:
    program = "import sys; sys.path.insert(0, ''); import runtime"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: this folder is installed as the package 'mri_edge'" in done.stderr


def _tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    private = re.compile(rb"(?<![\w.~])/(?:root|work|Users/\w+|home/\w+)/")
    found = [name for name in _tracked() if private.search((CHECKOUT / name).read_bytes())]
    assert found == []


def test_no_picture_but_the_demo_scans_is_in_the_repository() -> None:
    """Scans are other people's: they stay in the data folder. Golden values are of the demo scans, byte for byte."""
    pictures = {".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".nii", ".gz", ".npy", ".npz"}
    demo = {path.read_bytes() for path in (CHECKOUT / "examples").glob("*.jpg")}
    # The plane of novelty.py is 17 rows of channel means, split.npy ten bytes an image: neither tells a picture.
    golden = re.compile(r"runtime/models/\w+/(golden(\.npz|/.+)|(novelty|split)\.npy)")
    # The answers of a cross-validation: a number for each scan, its probability of a tumour.
    answers = re.compile(r"benchmarks/crossval/\w+/fold-\d+/(teacher|student \d+)\.npz")
    found = {name for name in _tracked() if Path(name).suffix.lower() in pictures and not name.startswith("examples/")}
    assert {name for name in found if not golden.fullmatch(name) and not answers.fullmatch(name)} == set()
    for name in filter(answers.fullmatch, found):
        with np.load(CHECKOUT / name, allow_pickle=False) as kept:
            assert {array: kept[array].ndim for array in kept} == {
                "positive": 1,
                "threshold": 0,
                "made_by": 0,
                **({"validation": 1, "validation_ill": 1} if "validation" in kept else {}),
            }
    assert {
        name for name in found if not name.endswith((".npz", ".npy")) and (CHECKOUT / name).read_bytes() not in demo
    } == set()
