#!/usr/bin/env bash
# Check that 64-bit ARM wheels exist for every package that mri-edge and its extras `litert` and `node` need.
#
#   resolve.sh PYTHON [VERSION...]      PYTHON: an interpreter with pip 22.2 or newer; VERSION: the Python of the device
#
# It asks the package index for wheels that run with the glibc of Ubuntu 22.04 (2.35, JetPack 6). It installs nothing.
set -euo pipefail
python=$1
shift
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13

cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
platforms=(--platform manylinux2014_aarch64)
for minor in $(seq 17 35); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
# The dependencies in pyproject.toml, without building the package.
"$python" - <<'PYTHON' >"$work/requirements.txt"
import re
text = open("pyproject.toml", encoding="utf-8").read()
runtime = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S).group(1)
extras = re.findall(r"^(?:litert|node) = \[(.*?)\]", text, re.M | re.S)
print(*re.findall(r'"(.+?)"', "".join([runtime, *extras])), sep="\n")
PYTHON
for version in "$@"; do
    "$python" -m pip install --dry-run --quiet --target "$work/none" --only-binary :all: "${platforms[@]}" \
        --python-version "$version" --requirement "$work/requirements.txt" --report "$work/report.json" 2>"$work/errors" ||
        { echo "Python $version on 64-bit ARM:" >&2; grep -v WARNING "$work/errors" >&2; exit 1; }
    "$python" - "$version" "$work/report.json" <<'PYTHON'
import json, sys
found = [package["metadata"] for package in json.load(open(sys.argv[2]))["install"]]
names = sorted(f"{package['name'].lower()} {package['version']}" for package in found)
print(f"Python {sys.argv[1]} on 64-bit ARM: {', '.join(names)}")
PYTHON
done
