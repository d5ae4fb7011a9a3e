"""List the megabytes of each package that `pip install mri-edge` installs, and which of them `predict` imports.

    python scripts/weigh_install.py                install into a new environment; needs the package index
    python scripts/weigh_install.py --site DIR     list an existing site-packages folder, as JSON

The documentation shows the table of the first form.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
NOT_OURS = {"pip", "setuptools", "wheel"}  # part of every environment

# Runs in the new environment: predict, then the top-level modules that it imported.
_PREDICT = """
import json, sys
from mri_edge.cli import run
code = run(["predict", sys.argv[1]])
print(json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def weigh(site: Path) -> dict[str, float]:
    """Return the megabytes (10^6 bytes) of each package in a site-packages folder, with bytecode; largest first."""
    sizes = {}
    for package in distributions(path=[str(site)]):
        name = package.name.lower()
        files = [Path(str(package.locate_file(file))) for file in package.files or ()]
        if name not in NOT_OURS:
            sizes[name] = round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 1)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def main() -> None:
    """Print JSON or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, metavar="DIR")
    site = parser.parse_args().site
    if site:
        sizes = weigh(site)
        print(json.dumps({"megabytes": round(sum(sizes.values()), 1), "packages": sizes}))
        return
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder))


def _measure(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    start = time.monotonic()
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", str(CHECKOUT)]
    subprocess.run(pip, check=True)
    seconds = time.monotonic() - start
    [site] = folder.glob("lib/python3.*/site-packages")
    sizes = weigh(site)
    predict = [python, "-c", _PREDICT, str(CHECKOUT / "examples")]
    done = subprocess.run(predict, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["code"]:
        sys.exit(f"predict failed: {done.stderr}")
    for name, size in sizes.items():
        [package] = distributions(path=[str(site)], name=name)
        modules = {str(file).partition("/")[0].removesuffix(".py") for file in package.files or ()}
        print(f"{size:7.1f} MB  {name:<16}  {'imported' if modules & set(answer['modules']) else ''}")
    print(f"{sum(sizes.values()):7.1f} MB  in total, installed in {seconds:.0f} s with downloads")


if __name__ == "__main__":
    main()
