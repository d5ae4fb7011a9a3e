"""A short run of ``benchmarks.server_campaign``: good, damaged and abandoned requests, and signals under load."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn")

from benchmarks import server_campaign


def test_every_request_is_answered_right_or_refused(tmp_path):
    record = server_campaign.run(600, tmp_path / "server.log", kills=1)
    # So few requests say nothing about the memory.
    assert [fault for fault in record["faults"] if "memory" not in fault] == []
    assert record["outcomes"]["answered"] > 300
    assert record["outcomes"]["garbage answered"] > 60
    assert record["outcomes"]["disconnected"] == 6
    assert all(stopped["answered"] for stopped in record["stops"].values())


def test_wrong_answers_are_noticed():
    good = server_campaign.good_requests()
    picture, other = good[0], next(ask for ask in good if ask.name == "tensors")
    assert not picture.check(200, b'{"label": "tumour", "probabilities": {"tumour": 0.5, "no tumour": 0.5}}')
    assert not picture.check(500, b"{}")
    assert not other.check(200, b'{"outputs": [{"shape": [1, 2]}]}' + bytes(8))
    assert not all(ask.check(200, b'{"error": "x"}') for ask in server_campaign.garbage_requests(good))
