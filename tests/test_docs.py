"""README and docs/: links and anchors resolve, and commands run and print the output that the pages show.

The commands of a fenced `console` block run unchanged in a folder with `scans/`, `scan.jpg`, `incoming/` and
`examples/`. The output below a command is compared; `...` matches anything. An HTML comment before the block changes
this: `<!-- numbers vary -->` ignores numbers, and `<!-- not run: REASON -->` only parses the commands.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mri_edge.cli import COMMANDS, cli

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (not run: [^\n]+|numbers vary) -->\n)?```console\n(.*?)^```", re.M | re.S)
SPEED_ROWS = 6


def page_name(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def prose(path: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs generate them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_anchors_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [CHECKOUT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = re.findall(r"\]\(([^)\s#:]+\.md)[)#]", prose(page))
            waiting += [(page.parent / target).resolve() for target in targets]
    assert {page for page in PAGES if page not in reached} == {DOCS / "index.md"}  # the front page of the site


def blocks(page: Path) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return the console blocks of a page: the mark, and the commands with the output below each."""
    found = []
    for mark, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        commands: list[tuple[str, list[str]]] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
        found.append((mark, commands))
    return found


def arguments_of_ours(command: str) -> list[list[str]]:
    """Return the arguments of each `mri-edge` in a command line, up to a pipe or a redirection."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|>;")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word[0] in "|>;":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part[1:] for part in parts if part[:1] == ["mri-edge"]]


COMMANDS_SHOWN = [
    pytest.param(command, id=f"{page_name(page)}: {command[:60]}")
    for page in PAGES
    for _, commands in blocks(page)
    for command, _ in commands
    if arguments_of_ours(command)
]
BLOCKS_RUN = [
    pytest.param(mark, commands, id=f"{page_name(page)}-{number}")
    for page in PAGES
    for number, (mark, commands) in enumerate(blocks(page))
    if not mark.startswith("not run") and any(arguments_of_ours(command) for command, _ in commands)
]


@pytest.mark.parametrize("command", COMMANDS_SHOWN)
def test_command_is_accepted(command: str) -> None:
    """This includes the commands of blocks that are not run."""
    for name, *arguments in arguments_of_ours(command):
        assert name in COMMANDS
        cli.get_command(click.Context(cli), name).make_context(name, arguments, resilient_parsing=True)


def test_workflow_on_the_page_is_the_linted_file() -> None:
    """``make lint-workflows`` checks the file. Here its commands are checked."""
    workflow = (DOCS / "assets" / "benchmark-workflow.yml").read_text(encoding="utf-8")
    page = (DOCS / "bench-in-ci.md").read_text(encoding="utf-8")
    assert re.search(r"^```yaml\n(.*?)^```", page, re.M | re.S)[1] == workflow
    commands = re.findall(r"mri-edge bench .+", workflow)
    assert len(commands) == 3
    for command in commands:
        test_command_is_accepted(command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo scans under the names that the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    examples = CHECKOUT / "examples"
    shutil.copytree(examples, folder / "examples")
    shutil.copy(examples / "phantom-1.jpg", folder / "scan.jpg")
    for label, pattern in (("no", "mni152-*.jpg"), ("yes", "phantom-*.jpg")):
        (folder / "scans" / label).mkdir(parents=True)
        for scan in examples.glob(pattern):
            shutil.copy(scan, folder / "scans" / label)
    shutil.copytree(folder / "scans" / "yes", folder / "incoming")
    (folder / "bin").mkdir()
    program = folder / "bin" / "mri-edge"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mri_edge "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return folder


def normalize(line: str, *, numbers: bool) -> str:
    """Replace everything that differs between two runs: times, hashes and, with ``numbers``, every number."""
    line = re.sub(r'"latency_ms": \{[^}]*\}', '"latency_ms": {}', line)
    line = re.sub(r"(0\.\d{4})\d{6,}", r"\1", line)
    line = re.sub(r"^((?:no )?tumour +0\.\d{3}) +[\d.]+ ", r"\1 TIME ", line)
    line = re.sub(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{8,64}\b", "HASH", line)
    if numbers:
        line = re.sub(r"\d+(\.\d+)*", "N", line)
    return " ".join(line.split())


def matches(shown: list[str], printed: str, *, numbers: bool) -> bool:
    """Return whether the output is as shown. `...` in a line, or as a line, matches anything."""
    wanted = "\n".join(normalize(line, numbers=numbers) for line in shown)
    pattern = re.escape(wanted).replace(r"\.\.\.", ".*")
    got = "\n".join(normalize(line, numbers=numbers) for line in printed.splitlines())
    return re.fullmatch(pattern, got, re.S) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="the pages use a POSIX shell")
@pytest.mark.parametrize(("mark", "commands"), BLOCKS_RUN)
def test_commands_print_the_output_on_the_page(mark: str, commands: list[tuple[str, list[str]]], folder: Path) -> None:
    if any("bundle sign" in command or "--require-signature" in command for command, _ in commands):
        pytest.importorskip("cryptography", reason="needs the extra 'sign'")
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    environment |= {"MRI_EDGE_PROFILE_DIR": str(folder / "profiles")}  # do not use the user's device profiles
    for command, shown in commands:
        if not arguments_of_ours(command):
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if shown:
            printed = done.stdout + done.stderr
            assert matches(shown, printed, numbers=mark == "numbers vary"), f"{command}\n{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["tumour         0.991     18.9  a.jpg"], "tumour 0.991  3.1  a.jpg\n", True),
        (["tumour         0.991     18.9  a.jpg"], "tumour 0.992  3.1  a.jpg\n", False),
        (["first", "...", "last"], "first\n2\n3\nlast\n", True),
        (["first", "last"], "first\n2\nlast\n", False),
    ],
)
def test_comparison_detects_a_changed_line(shown: list[str], printed: str, same: bool) -> None:
    assert matches(shown, printed, numbers=False) == same


def test_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_speed_in_readme_is_from_the_generated_table() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    generated = (DOCS / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in readme.splitlines() if re.match(r"\| (lite|small|vgg16) \|", line)]
    assert len(rows) == SPEED_ROWS
    assert [row for row in rows if not any(line.startswith(row) for line in generated)] == []


def test_pages_state_research_use_only() -> None:
    user_pages = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "CHANGELOG.md")]
    reference = {"api.md", "commands.md", "architecture.md", "maintaining.md"}
    silent = [page.name for page in user_pages if "research use only" not in page.read_text(encoding="utf-8").lower()]
    assert set(silent) <= reference


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    for library in ("mkdocs", "mkdocs_click", "material", "mkdocstrings"):
        pytest.importorskip(library, reason="needs the dependency group 'docs'")
    pytest.importorskip("keras", reason="the command reference covers train and export")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=CHECKOUT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    mounted = runpy.run_path(str(DOCS / "hooks.py"))["MOUNTED"]
    sources = [*DOCS.rglob("*.md"), *(path for pattern in mounted for path in CHECKOUT.glob(pattern))]
    pages_expected = sum(path.suffix == ".md" for path in sources)
    assert len(list(tmp_path.rglob("index.html"))) == pages_expected  # two pages with one address would be one file
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    import mri_edge

    assert [
        name
        for name in mri_edge.__all__
        if not name.startswith("_") and not re.search(rf'id="mri_edge\.([\w.]+\.)?{name}"', api)
    ] == []
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    assert "Sentinel" not in pages  # an internal default of click must not appear in the command reference
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!example)[^"]+"', pages) == []
