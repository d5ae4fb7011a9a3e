"""Memory stays flat over many requests, a fifth of which are garbage; ``benchmarks.server_campaign`` sends 100,000."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")

_WARM_UP, _REQUESTS = 200, 400
_MAX_GROWTH = 1.05


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat(serve, examples, zip_of, images, binary):
    server = serve("--model", "small")
    url = server.wait_until_ready()
    scan = (examples / "phantom-1.jpg").read_bytes()
    tensor, headers = binary(images)
    garbage = [scan[:999], b"\0" * 5000, zip_of([("../x", scan)]), b"\xff\xd8\xff" + scan[:50], b"{"]

    def ask(client, number):
        if number % 5 == 0:
            path = "/v2/models/small/infer" if number % 2 else "/v1/classify"
            return client.post(path, content=garbage[number // 5 % len(garbage)]).status_code
        if number % 5 == 1:
            return client.post("/v2/models/small/infer", content=tensor, headers=headers).status_code
        if number % 50 == 2:
            return client.post("/v1/classify", files={"a": ("a.jpg", scan), "b": ("b.jpg", scan)}).status_code
        return client.post("/v1/classify", content=scan).status_code

    def send(first, count):
        with httpx.Client(base_url=url, timeout=120) as client:
            return [ask(client, number) for number in range(first, first + count)]

    with ThreadPoolExecutor(2) as pool:
        [*pool.map(send, (0, 1), [_WARM_UP // 2] * 2)]
        before = resident(server.process.pid)
        statuses = [status for part in pool.map(send, (0, 1), [_REQUESTS // 2] * 2) for status in part]
    after = resident(server.process.pid)
    assert statuses.count(200) == pytest.approx(_REQUESTS * 4 / 5, abs=10)
    assert all(status < 500 for status in statuses)
    assert after <= before * _MAX_GROWTH, f"{before * 4} to {after * 4} KiB"
    assert "mri_edge_held_bytes 0.0" in httpx.get(f"{url}/metrics", timeout=120).text
