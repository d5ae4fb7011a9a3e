"""The systemd services: their exposure, their syntax, and their command lines."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mri_edge import __version__
from mri_edge.commands.services.node import node
from mri_edge.commands.services.serve import serve
from mri_edge.commands.services.watch import watch
from mri_edge.errors import BundleError, EngineError, UsageError
from mri_edge.services.http.limits import Limits

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = DEPLOY / "mri-edge-watch.service"
NODE = DEPLOY / "mri-edge-node.service"
# systemd rates the exposure from 0 to 10, and calls it safe below 2. What remains is intended: the service reads
# /proc/cpuinfo, reports to systemd, lets its group read the results, and runs in the root folder of the machine.
SERVER = DEPLOY / "mri-edge-serve.service"
# The node and the server also use the network.
EXPOSURE = {UNIT: 0.2, NODE: 0.9, SERVER: 0.9}
UNITS = pytest.mark.parametrize("unit", EXPOSURE, ids=lambda unit: unit.name)


def _settings(file: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", file.read_text(encoding="utf-8"), re.M)


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd on this machine")
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.split()[1]) < 250:
        pytest.skip("systemd before version 250 cannot analyze a unit file that is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@UNITS
def test_exposure_of_the_service_does_not_grow(unit: Path) -> None:
    done = _analyze("security", "--offline=true", "--no-pager", str(unit))
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= EXPOSURE[unit], done.stdout


@UNITS
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    [command] = _settings(unit, "ExecStart")
    here = tmp_path / unit.name  # systemd checks that the program exists
    here.write_text(text.replace(shlex.split(command)[0], sys.executable), encoding="utf-8")
    done = _analyze("verify", "--man=no", str(here))
    assert unit.name not in done.stderr, done.stderr
    here.write_text(text.replace("MemoryMax", "MemoryLots"), encoding="utf-8")
    assert "MemoryLots" in _analyze("verify", "--man=no", str(here)).stderr  # control: an unknown line is reported


def test_service_starts_an_existing_command() -> None:
    [command] = _settings(UNIT, "ExecStart")
    program, name, *arguments = shlex.split(command)
    assert Path(program).name == "mri-edge"
    assert name == "watch"
    context = watch.make_context("watch", arguments)
    incoming, out = context.params["folder"], context.params["out"]
    # tmpfiles.d creates the folder that others write to, because systemd would create it for the service only.
    created = dict(re.findall(r"^d (\S+)\s+(\d+ \S+ \S+)$", (DEPLOY / "tmpfiles.conf").read_text(), re.M))
    assert created[str(incoming)] == "2770 mri-edge mri-edge"
    [state] = _settings(UNIT, "StateDirectory")
    assert str(out) in [f"/var/lib/{folder}" for folder in state.split()]
    with pytest.raises(click.UsageError):
        watch.make_context("watch", [*arguments, "--no-such-option"])


def test_the_server_starts_an_existing_command_on_the_port_that_the_unit_allows() -> None:
    [command] = _settings(SERVER, "ExecStart")
    _, name, *arguments, options = shlex.split(command)
    assert (name, options) == ("serve", "$MRI_EDGE_SERVE_OPTIONS")
    context = serve.make_context("serve", arguments)
    assert context.params["host"] == "127.0.0.1"
    assert _settings(SERVER, "SocketBindAllow") == [f"tcp:{context.params['port']}"]
    [final] = _settings(SERVER, "RestartPreventExitStatus")
    assert {int(code) for code in final.split()} == {2, 3, 4}
    [stop] = _settings(SERVER, "TimeoutStopSec")
    assert int(stop.removesuffix("s")) > context.params["timeout"]


@pytest.mark.parametrize(("page", "unit", "extra"), [("server", SERVER, "serve"), ("node", NODE, "node")])
def test_the_page_installs_what_the_service_needs(page: str, unit: Path, extra: str) -> None:
    text = (DEPLOY.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```\w+\n(.*?)```", text, re.S) if f"{unit.name} /etc/" in block]
    [extras] = re.findall(r"pip install '\.\[([\w,]+)\]'", block)
    assert extra in extras.split(",")
    assert "sysusers.d/" in block
    assert _settings(unit, "ExecStart")[0].startswith("/opt/mri-edge/bin/")
    assert re.search(r"apt-get install .*python3-venv\n.*python3 -m venv /opt/mri-edge\n", block)


@pytest.mark.parametrize(
    ("file", "pattern"), [("mri-edge-serve.service", r"^MemoryMax=(\d+)G$"), ("compose.yaml", r"^ +mem_limit: (\d+)g$")]
)
def test_the_memory_is_enough_for_uploads_in_a_folder_in_memory(file: str, pattern: str) -> None:
    [allowed] = re.findall(pattern, (DEPLOY / file).read_text(encoding="utf-8"), re.M)
    limits = Limits()
    others = (150 + 500) << 20  # the program with a model, and a picture that is decoded
    assert int(allowed) << 30 >= limits.held_bytes + limits.unpacked_bytes + others


@pytest.mark.parametrize("file", ["compose.yaml", "kserve.yaml"])
def test_containers_start_an_existing_command_with_a_token(file: str) -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8"))
    if file == "compose.yaml":
        container = content["services"]["mri-edge"]
        name, *arguments = container["command"]
        assert container["read_only"]
        assert (DEPLOY / container["build"]["args"]["LOCK"]).exists()
    else:
        assert content["kind"] == "InferenceService"
        container = content["spec"]["predictor"]["containers"][0]
        name, *arguments = container["args"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        image = container["image"]
        assert image.endswith(f":{__version__}")
        header = (DEPLOY / file).read_text(encoding="utf-8").partition("apiVersion")[0]
        assert re.findall(r"docker build .*-t (\S+) \.|docker push (\S+)", header) == [(image, ""), ("", image)]
    assert name == "serve"
    params = serve.make_context("serve", arguments).params
    assert params["host"] == "0.0.0.0"  # noqa: S104 (within the container)
    assert params["token_file"] is not None


def test_the_server_starts_with_the_options_on_its_page_which_also_opens_their_port() -> None:
    _, _, *arguments, _ = shlex.split(_settings(SERVER, "ExecStart")[0])
    assert _settings(SERVER, "EnvironmentFile") == ["-/etc/mri-edge/serve.env"]
    text = (DEPLOY.parent / "docs" / "server.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^ *MRI_EDGE_SERVE_OPTIONS=(.+)$", text, re.M)
    params = serve.make_context("serve", [*arguments, *shlex.split(example)]).params
    assert re.findall(r"^ *SocketBindAllow=(.+)$", text, re.M) == [f"tcp:{params['port']}"]
    assert re.search(r"^ *IPAddressAllow=\d", text, re.M)
    for file in (params["token_file"], params["tls_cert"], params["tls_key"]):
        assert file.parent == Path("/etc/mri-edge")


def test_the_node_starts_with_the_options_of_its_file() -> None:
    [command] = _settings(NODE, "ExecStart")
    program, name, *arguments, options = shlex.split(command)
    assert (Path(program).name, name, options) == ("mri-edge", "node", "$MRI_EDGE_NODE_OPTIONS")
    text = (DEPLOY.parent / "docs" / "node.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^MRI_EDGE_NODE_OPTIONS=(.+)$", text, re.M)
    context = node.make_context("node", [*arguments, *shlex.split(example)])
    assert context.params["allow"]
    assert context.params["send_to"]
    [state] = _settings(NODE, "StateDirectory")
    assert str(context.params["spool"]) in [f"/var/lib/{folder}" for folder in state.split()]


@UNITS
def test_the_service_is_restarted_unless_a_restart_cannot_help(unit: Path) -> None:
    """Wrong usage or a missing model stop it. A full disk (exit code 6), an engine error or a crash do not.

    The server opens its engine once and checks its answers, so there an engine error is final, too.
    """
    [final] = _settings(unit, "RestartPreventExitStatus")
    expected = {UsageError.exit_code, BundleError.exit_code} | ({EngineError.exit_code} if unit == SERVER else set())
    assert {int(code) for code in final.split()} == expected
    assert _settings(unit, "Restart") == ["on-failure"]


@pytest.mark.parametrize("page", ["server", "node"])
def test_only_the_service_can_read_the_folder_of_its_secrets(page: str) -> None:
    """It reads a token as its own user; systemd reads the options as root."""
    text = (DEPLOY.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert re.findall(r"install -d .*/etc/mri-edge\b.*", text) == ["install -d -m 750 -g mri-edge /etc/mri-edge"]


@UNITS
def test_the_user_of_the_service_is_created(unit: Path) -> None:
    [user] = _settings(unit, "User")
    assert re.search(rf"^u {user} ", (DEPLOY / "sysusers.conf").read_text(), re.M)
    assert user != "root"
