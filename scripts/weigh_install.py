"""Weigh what `pip install mri-edge` brings: megabytes a package, and what `predict` imports of it.

    python scripts/weigh_install.py                install into a fresh environment, time it, weigh it
    python scripts/weigh_install.py --site DIR     weigh a site-packages that is there, as JSON

The table of the first form is the one of README, "On a device". It needs the package index.
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
NOT_OURS = {"pip", "setuptools", "wheel"}  # every environment has them

# In the environment that is weighed: runs predict, then tells the top modules that it had to import.
_PREDICT = """
import json, sys
from mri_edge.cli import run
code = run(["predict", sys.argv[1]])
print(json.dumps({"code": code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def weigh(site: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of each package in a site-packages folder, bytecode included; the heaviest first."""
    sizes = {}
    for one in distributions(path=[str(site)]):
        name = one.name.lower()
        files = [Path(str(one.locate_file(file))) for file in one.files or ()]
        if name not in NOT_OURS:
            sizes[name] = round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 1)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def main() -> None:
    """Parse the command line; print JSON or the table."""
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
    begun = time.monotonic()
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", str(CHECKOUT)]
    subprocess.run(pip, check=True)
    seconds = time.monotonic() - begun
    [site] = folder.glob("lib/python3.*/site-packages")
    sizes = weigh(site)
    predict = [python, "-c", _PREDICT, str(CHECKOUT / "examples")]
    done = subprocess.run(predict, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["code"]:
        sys.exit(f"predict failed: {done.stderr}")
    for name, size in sizes.items():
        [one] = distributions(path=[str(site)], name=name)
        tops = {str(file).partition("/")[0].removesuffix(".py") for file in one.files or ()}
        print(f"{size:7.1f} MB  {name:<16}  {'imported' if tops & set(answer['modules']) else ''}")
    print(f"{sum(sizes.values()):7.1f} MB  in all, installed in {seconds:.0f} s, downloads included")


if __name__ == "__main__":
    main()
