#!/usr/bin/env bash
# Do wheels for 64-bit ARM exist of all that `pip install mri-edge` and its extra `litert` need?
#
#   resolve.sh PYTHON [VERSION...]      PYTHON: one with pip 22.2 or newer; VERSION: of the device's Python
#
# Asks the package index, for the glibc of Ubuntu 22.04 (2.35, JetPack 6) and all that came after. Installs nothing.
set -euo pipefail
python=$1
shift
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13

cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
platforms=(--platform manylinux2014_aarch64)
for minor in $(seq 17 35); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
# What pyproject.toml asks for, without building the package itself.
"$python" - <<'PYTHON' >"$work/requirements.txt"
import re
text = open("pyproject.toml", encoding="utf-8").read()
runtime = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S).group(1)
litert = re.search(r"^litert = \[(.*?)\]", text, re.M | re.S).group(1)
print(*re.findall(r'"(.+?)"', runtime + litert), sep="\n")
PYTHON
for version in "$@"; do
    "$python" -m pip install --dry-run --quiet --target "$work/none" --only-binary :all: "${platforms[@]}" \
        --python-version "$version" --requirement "$work/requirements.txt" --report "$work/report.json" 2>"$work/errors" ||
        { echo "Python $version on 64-bit ARM:" >&2; grep -v WARNING "$work/errors" >&2; exit 1; }
    "$python" - "$version" "$work/report.json" <<'PYTHON'
import json, sys
found = [one["metadata"] for one in json.load(open(sys.argv[2]))["install"]]
names = sorted(f"{one['name'].lower()} {one['version']}" for one in found)
print(f"Python {sys.argv[1]} on 64-bit ARM: {', '.join(names)}")
PYTHON
done
