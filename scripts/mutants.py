"""Plant small faults in a copy of the code and report which ones the tests miss: ``make mutants``.

A run draws a sample of mutants (a swapped comparison, a changed limit, a removed statement) from the modules in
``tests/mutants.toml``. The script writes each into a copy of the checkout and runs only the tests that execute the
changed line. It saves each outcome in ``build/mutants.json``, from which an interrupted run continues. ``--planted``
runs the faults of ``tests/planted_faults.toml`` instead; the tests must notice each of them. Both need Python 3.11.

mutmut does not mutate module constants, such as the limits here, and does not find a package that is installed from a
folder of another name. cosmic-ray changes the checkout itself.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import tomllib

CHECKOUT = Path(__file__).resolve().parents[1]
SAVED = CHECKOUT / "build" / "mutants.json"
RECORD = CHECKOUT / "tests" / "mutants.json"
PLANTED = CHECKOUT / "tests" / "planted_faults.toml"

# Libraries that the tests import. They are loaded once, because each mutant runs in a fork. None may import mri_edge.
LIBRARIES = (
    "cryptography.hazmat.primitives.serialization",
    "hypothesis",
    "numpy",
    "onnx",
    "onnxruntime",
    "PIL.Image",
    "pytest",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.metrics",
    "sklearn.model_selection",
)

_TABLE = tomllib.loads((CHECKOUT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
SCOPE: dict[str, list[str]] = {file: entry["tests"] for entry in _TABLE["scope"] for file in entry["modules"]}
PARTS: dict[str, list[str]] = _TABLE["parts"]

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
}
_BROKEN = 70  # exit code of a fork in which pytest itself failed
_OPPOSITE = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A change of a module: ``new`` replaces bytes ``start`` to ``end``. ``lines`` are the lines of the statement."""

    file: str
    start: int
    end: int
    old: str
    new: str
    function: str | None
    lines: range
    rank: str

    def __str__(self) -> str:
        return f"{self.file}:{self.lines[0]}: {' '.join(self.old.split())}  ->  {self.new}"

    def apply(self, source: bytes) -> bytes:
        """Return the source of the module with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def changes(node: ast.AST) -> Iterator[str]:  # noqa: PLR0912 (one case for each kind of node)
    """Yield the replacements of a node, as source text."""
    if isinstance(node, ast.Compare | ast.BoolOp | ast.BinOp | ast.AugAssign):
        other: Any = copy.deepcopy(node)
        swapped = _SWAPS.get(type(node.ops[0] if isinstance(node, ast.Compare) else node.op), type(None))()
        if isinstance(node, ast.Compare):
            other.ops[0] = swapped
        else:
            other.op = swapped
        if swapped is not None and not any(isinstance(part, ast.JoinedStr) for part in ast.walk(node)):
            yield ast.unparse(other) if isinstance(node, ast.AugAssign) else f"({ast.unparse(other)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (str(node.value + 1), str(node.value * 2) if node.value > 1 else str(1 - node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield from (str(node.value * 2), "0.0") if node.value else ("1.0",)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "return None"
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "pass"
    elif isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in _OPPOSITE:
            yield ast.unparse(node)[: -len(name)] + _OPPOSITE[name]


def mutants_of(file: str, source: bytes, seed: int) -> list[Mutant]:
    """Return every mutant of a module; ``rank`` is a random order that does not depend on other code."""
    line_starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    found: list[Mutant] = []
    occurrences: Counter[str] = Counter()

    def add(node: Any, statement: Any, function: str | None) -> None:
        target = node.test if isinstance(node, ast.If | ast.IfExp | ast.While) else node
        start = line_starts[target.lineno - 1] + target.col_offset
        end = line_starts[target.end_lineno - 1] + target.end_col_offset
        header = statement.body[0].lineno - 1 if hasattr(statement, "body") else statement.end_lineno
        lines = range(statement.lineno, max(header, statement.lineno) + 1)
        for new in changes(node):
            old = source[start:end].decode()
            name = f"{seed} {file} {function} {old} {new}"
            occurrences[name] += 1
            rank = hashlib.sha256(f"{name} {occurrences[name]}".encode()).hexdigest()
            found.append(Mutant(file, start, end, old, new, function, lines, rank))

    def visit(node: ast.AST, statement: ast.AST, function: str | None) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.If) and any(name in ast.unparse(node.test) for name in ("win32", "TYPE_CHECKING")):
            return
        statement = node if isinstance(node, ast.stmt) else statement
        if hasattr(node, "lineno"):
            add(node, statement, function)
        inner = isinstance(node, ast.FunctionDef)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, statement, (function or node.name) if inner and name == "body" else function)  # type: ignore[attr-defined]

    tree = ast.parse(source)
    visit(tree, tree, None)
    return [mutant for mutant in found if file not in PARTS or mutant.function in PARTS[file]]


class Trace:
    """A pytest plugin that records which lines of the modules in ``SCOPE`` each test executes, and its CPU time."""

    def __init__(self, package: Path, out: Path) -> None:
        self.module = {str(package / file.removeprefix("runtime/")): file for file in SCOPE}
        self.out = out
        self.tests: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, set[int]] = defaultdict(set)

    def _call(self, frame: Any, event: str, argument: object) -> Any:
        file = self.module.get(frame.f_code.co_filename)
        if file is None:
            return None
        self.lines[file].add(frame.f_lineno)
        return self._call

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record a test that fails without any fault. No mutant is judged by it."""
        if report.failed:
            self.tests[report.nodeid] = {"failed": True}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Start tracing."""
        self.lines, self.start = defaultdict(set), (time.process_time(), time.monotonic())
        threading.settrace(self._call)
        sys.settrace(self._call)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Record the lines, and clear caches, so that the next test executes all lines that it depends on."""
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        lines = {file: sorted(lines) for file, lines in self.lines.items()}
        cpu_s, wall_s = time.process_time() - self.start[0], time.monotonic() - self.start[1]
        self.tests.setdefault(nodeid, {"cpu_s": cpu_s, "wall_s": wall_s, "lines": lines})
        for name, module in list(sys.modules.items()):
            if name.startswith("mri_edge"):
                for value in list(vars(module).values()):
                    getattr(value, "cache_clear", lambda: None)()

    def pytest_sessionfinish(self) -> None:
        """Write the records for the parent process."""
        self.out.write_text(json.dumps(self.tests), encoding="utf-8")


class Scratch:
    """A copy of the checkout to run tests in. Links make it importable as the installed package."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.package, self._folder = folder / "tree", folder / "site" / "mri_edge", folder
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (CHECKOUT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, self.tree / name)
        self.package.mkdir(parents=True)
        for path in [*(self.tree / "runtime").iterdir(), self.tree / "train", self.tree / "export"]:
            (self.package / path.name).symlink_to(path)
        self._changes = 0
        os.environ["PYTHONPATH"] = str(self.package.parent)
        for name in LIBRARIES:
            import_module(name)

    def write(self, file: str | Path, content: bytes) -> None:
        """Change a file and its modification time, so that Python compiles it again."""
        self._changes += 1
        path = self.tree / file
        path.write_bytes(content)
        os.utime(path, (self._changes, self._changes))

    def run(self, tests: Sequence[str], cpu_s: float, *, slow: bool = False, trace: Path | None = None) -> str:
        """Run tests in a fork: "passed", "failed", or "timed out" after ``cpu_s`` or 20 times that in real time."""
        child = os.fork()
        if child == 0:
            self._run_here(tests, cpu_s, slow, trace)
        end = time.monotonic() + 20 * cpu_s
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.02)
        with suppress(ProcessLookupError):  # ends the test, if it still runs, and its children
            os.killpg(child, signal.SIGKILL)
        if done[0] == 0:
            os.waitpid(child, 0)
            return "timed out"
        code = os.waitstatus_to_exitcode(done[1])
        if code == _BROKEN:
            raise SystemExit(f"pytest did not run:\n{self.log}")
        return {0: "passed", -signal.SIGXCPU: "timed out"}.get(code, "failed")

    def _run_here(self, tests: Sequence[str], cpu_s: float, slow: bool, trace: Path | None) -> None:
        try:
            os.setsid()
            os.chdir(self.tree)
            log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            spent = time.process_time()
            resource.setrlimit(resource.RLIMIT_CPU, (int(spent + cpu_s) + 1, int(spent + cpu_s) + 10))
            sys.path.insert(0, str(self.package.parent))
            sys.argv = ["pytest", *tests]
            options = ["-q", "-p", "no:cacheprovider", f"--basetemp={self._folder / 'tmp'}"]
            options += ([] if slow else ["-m", "not slow"]) + ([] if trace else ["-x"])
            plugins = [Trace(self.package, trace)] if trace else []
            code = import_module("pytest").main([*options, *tests], plugins=plugins)
            os._exit(int(code))
        finally:
            os._exit(_BROKEN)

    @property
    def log(self) -> str:
        """The end of the output of the last run."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]


class Judge:
    """Determine the outcome of each mutant: ``killed``, ``timed out``, ``survived`` or ``untested``."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._saved: dict[str, Any] = json.loads(SAVED.read_bytes()) if SAVED.is_file() else {}
        self.broken: set[str] = set()

    def outcome(self, mutant: Mutant, source: bytes) -> str:
        """Run the tests of the changed line, fastest first, until one fails."""
        tests, mutated = self._tests(mutant), mutant.apply(source)
        key = hashlib.sha256(mutated + self._content(SCOPE[mutant.file])).hexdigest()
        if key not in self._saved:
            outcome = "untested"
            if tests:
                self._scratch.write(mutant.file, mutated)
                try:
                    outcome = self._scratch.run(list(tests), 10 + 5 * sum(tests.values()))
                finally:
                    self._scratch.write(mutant.file, source)
            self._saved[key] = {"passed": "survived", "failed": "killed"}.get(outcome, outcome)
            self._save()
        return str(self._saved[key])

    def _tests(self, mutant: Mutant) -> dict[str, float]:
        """Return the CPU seconds of each test that executes the statement, or the module if it is in no function."""
        found = {}
        for argument in SCOPE[mutant.file]:
            if (self._scratch.tree / argument.partition("::")[0]).is_file():
                for name, trace in self._traced(argument).items():
                    lines = trace.get("lines", {}).get(mutant.file, [])
                    if trace.get("failed"):
                        self.broken.add(name)
                    elif any(line in mutant.lines for line in lines) or (mutant.function is None and lines):
                        found[name] = trace
        return {name: trace["cpu_s"] for name, trace in sorted(found.items(), key=lambda item: item[1]["wall_s"])}

    def _traced(self, argument: str) -> dict[str, Any]:
        key = f"trace {argument} {hashlib.sha256(self._content([argument, *SCOPE])).hexdigest()}"
        if key not in self._saved:
            print(f"tracing {argument}", flush=True)
            out = self._scratch.tree.parent / "trace.json"
            out.unlink(missing_ok=True)
            if self._scratch.run([argument], 1200, trace=out) == "timed out" or not out.is_file():
                raise SystemExit(f"{argument} does not run:\n{self._scratch.log}")
            self._saved[key] = json.loads(out.read_bytes())
            self._save()
        return dict(self._saved[key])

    def _content(self, names: Sequence[str]) -> bytes:
        """Return a hash of the files that an outcome depends on. A name may be that of a test in a file."""
        digest = hashlib.sha256()
        for name in sorted({name.partition("::")[0] for name in [*names, "tests/conftest.py"]}):
            if (self._scratch.tree / name).is_file():
                digest.update((self._scratch.tree / name).read_bytes())
        return digest.digest()

    def _save(self) -> None:
        SAVED.parent.mkdir(exist_ok=True)
        temporary = SAVED.with_suffix(".new")
        temporary.write_text(json.dumps(self._saved), encoding="utf-8")
        temporary.replace(SAVED)


def sample(scratch: Scratch, size: int, seed: int, only: str, record: Path) -> None:
    """Judge a sample of mutants and write the record."""
    from scipy.stats import binomtest

    sources = {file: (scratch.tree / file).read_bytes() for file in SCOPE if (scratch.tree / file).is_file()}
    mutants = [mutant for file, source in sources.items() for mutant in mutants_of(file, source, seed)]
    drawn = sorted(mutants, key=lambda mutant: mutant.rank)[:size]
    drawn.sort(key=lambda mutant: (not mutant.file.startswith("runtime"), mutant.file, mutant.start, mutant.new))
    judge = Judge(scratch)
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    missed = []
    for mutant in (mutant for mutant in drawn if only in mutant.file):
        if not mutant.file.startswith("runtime"):
            import_module("keras")  # takes seconds, and the tests of train and export import it
        outcome = judge.outcome(mutant, sources[mutant.file])
        outcomes[mutant.file][outcome] += 1
        if outcome in ("survived", "untested"):
            missed.append(f"{outcome}: {mutant}")
            print(missed[-1], flush=True)
    total = sum(outcomes.values(), Counter())
    noticed, judged = total["killed"] + total["timed out"], total.total()
    interval = binomtest(noticed, judged).proportion_ci(method="wilson")
    score = {"noticed": noticed, "of": judged, "low": round(interval.low, 3), "high": round(interval.high, 3)}
    content = {"seed": seed, "mutants": len(mutants), "score": score, "modules": outcomes, "missed": missed}
    record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for file, counts in outcomes.items():
        print(f"{file:<34} {counts['killed'] + counts['timed out']:>3} of {counts.total():>3}  {dict(counts)}")
    for name in sorted(judge.broken):
        print(f"skipped, fails without any fault: {name}")
    print(f"{noticed} of {judged} noticed: {noticed / judged:.1%} (95% {interval.low:.1%} to {interval.high:.1%})")


def planted(scratch: Scratch, only: str) -> int:
    """Plant each named fault. Return how many the tests missed or no longer match the code."""
    faults = [fault for fault in tomllib.loads(PLANTED.read_text(encoding="utf-8"))["fault"] if only in fault["name"]]
    passing: dict[tuple[str, ...], bool] = {}
    missed = 0
    for fault in faults:
        pattern = fault.get("pattern") or re.escape(fault["old"])
        texts = {file: file.read_text(encoding="utf-8") for file in scratch.tree.glob(fault["file"])}
        matches = [file for file, text in texts.items() for _ in re.finditer(pattern, text)]
        tests = tuple(test for test in fault["tests"] if (scratch.tree / test.partition("::")[0]).exists())
        if len(matches) != 1:
            outcome = f"STALE: the text occurs {len(matches)} times"
        elif not tests:
            outcome = f"STALE: none of its tests exists: {', '.join(fault['tests'])}"
        else:
            if tests not in passing:
                passing[tests] = scratch.run(tests, 1200, slow=True) == "passed"
                if not passing[tests]:
                    print(scratch.log[-2000:], file=sys.stderr)
            [file] = matches
            scratch.write(file, re.sub(pattern, lambda _, new=fault["new"]: new, texts[file]).encode())
            outcome = "MISSED" if scratch.run(tests, 1200, slow=True) == "passed" else "noticed"
            scratch.write(file, texts[file].encode())
            if not passing[tests]:
                outcome = "BROKEN: its tests fail without the fault"
        missed += outcome != "noticed"
        print(f"{outcome}: {fault['name']}", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} planted faults noticed")
    return missed


def main() -> None:
    """Judge a sample of mutants, or the planted faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=250, help="how many mutants to judge")
    parser.add_argument("--seed", type=int, default=0, help="selects the sample")
    parser.add_argument("--only", default="", help="run only files, or faults, with this text in their name")
    parser.add_argument("--record", type=Path, default=RECORD, help="where to write the outcomes")
    parser.add_argument("--planted", action="store_true", help="run the planted faults instead of a sample")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        scratch = Scratch(Path(folder))
        if arguments.planted:
            sys.exit(1 if planted(scratch, arguments.only) else 0)
        sample(scratch, arguments.sample, arguments.seed, arguments.only, arguments.record)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads do not survive a fork
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    main()
