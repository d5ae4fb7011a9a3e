"""The layout: the allowed imports, the installed packages, and the contents of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = {"runtime": "mri_edge", "train": "mri_edge.train", "export": "mri_edge.export"}


@pytest.fixture
def installed_tree(tmp_path: Path) -> Path:
    """The three folders as they are installed: train and export inside mri_edge."""
    tree = tmp_path / "mri_edge"
    tree.mkdir()
    for path in (*(CHECKOUT / "runtime").iterdir(), CHECKOUT / "train", CHECKOUT / "export"):
        if path.name != "__pycache__":
            (tree / path.name).symlink_to(path)
    return tmp_path


def _lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), CHECKOUT / ".importlinter", "--no-cache"],
        cwd=tree,
        env={"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_packages_import_only_the_layers_below_them(installed_tree: Path) -> None:
    done = _lint_imports(installed_tree)
    assert done.returncode == 0, done.stdout


def test_an_upward_import_breaks_the_contract(installed_tree: Path) -> None:
    """This proves that the linter checks the packages at all."""
    device = installed_tree / "mri_edge" / "device"
    device.unlink()
    device.mkdir()
    for path in (CHECKOUT / "runtime" / "device").glob("*.py"):
        (device / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (device / "upward.py").write_text("def call() -> None:\n    from mri_edge.inference import classifier\n")
    done = _lint_imports(installed_tree)
    assert done.returncode == 1
    assert "mri_edge.device.upward -> mri_edge.inference.classifier" in done.stdout


def test_every_folder_with_code_is_an_installed_package() -> None:
    """A folder that is missing from the list works in an editable installation, but the wheel lacks it."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    tables = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for folder in PACKAGES for path in (CHECKOUT / folder).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    names = []
    for folder in folders:
        top, *inner = folder.relative_to(CHECKOUT).parts
        names.append(".".join([PACKAGES[top], *inner]))
    assert sorted(tables["packages"]) == sorted(names)
    assert tables["package-dir"] == {package: folder for folder, package in PACKAGES.items()}


def test_no_folder_holds_more_than_16_modules() -> None:
    """A newcomer must be able to find things in the tree."""
    folders = {path.parent for folder in PACKAGES for path in (CHECKOUT / folder).rglob("*.py")}
    counts = {
        folder.relative_to(CHECKOUT).as_posix(): sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert {folder: count for folder, count in counts.items() if count > 16} == {}


def test_runtime_folder_cannot_be_imported_under_its_own_name() -> None:
    program = "import sys; sys.path.insert(0, ''); import runtime"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: this folder is installed as the package 'mri_edge'" in done.stderr


def _tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (CHECKOUT / name).is_file()]


def test_no_file_contains_a_path_from_a_developers_machine() -> None:
    private = re.compile(rb"(?<![\w.~])/(?:root|work|Users/\w+|home/\w+)/")
    found = [name for name in _tracked() if private.search((CHECKOUT / name).read_bytes())]
    assert found == []


@pytest.mark.parametrize(
    "page", [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))], ids=lambda p: p.stem
)
def test_git_ignores_what_the_commands_on_the_pages_write(page: Path) -> None:
    """It can be a private key, or contain what identifies a patient."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    option = r"--(?:out|heatmap|spool|dicom-out|resume|key|tls-key|token-file) (?![A-Z]+\b)([\w.-][\w./-]*)"
    written = {name for block in blocks for name in re.findall(option, block)}
    if not written:
        return
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *sorted(written)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert written - set(done.stdout.splitlines()) == set()


def test_repository_contains_no_images_except_the_demo_scans() -> None:
    """Scans stay in the data folder. The models and the page of the server contain exact copies of demo scans."""
    pictures = {".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".nii", ".gz", ".npy", ".npz"}
    demo = {path.read_bytes() for path in (CHECKOUT / "examples").rglob("*.*") if path.suffix in (".jpg", ".dcm")}
    # novelty.npy contains 17 rows of channel means, and split.npy ten bytes per image. Neither contains an image.
    copies = re.compile(r"runtime/(models/\w+/(golden(\.npz|/.+)|(novelty|split)\.npy)|services/http/page/demo/.+)")
    found = {name for name in _tracked() if Path(name).suffix.lower() in pictures and not name.startswith("examples/")}
    assert {name for name in found if not copies.fullmatch(name)} == set()
    # The demo series is drawn as the demo scans are; a test compares it with the output of its script.
    drawn = (".npz", ".npy", "/phantom-series.nii.gz")
    assert {name for name in found if not name.endswith(drawn) and (CHECKOUT / name).read_bytes() not in demo} == set()
