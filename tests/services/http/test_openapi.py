"""The OpenAPI description is complete, and no request that it allows makes the server fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("httpx")

TIMEOUT_S = 280


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_every_route_is_described(document, held):
    server = held(released=True)
    described = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if method != "parameters"
    }
    routes = {
        (method, "/" if path == "/" else route.pattern)
        for (method, path), route in server.app.gate._routes.items()
        if path != "/docs.css"
    }
    assert described == routes


def test_every_reference_leads_somewhere(document):
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert len(references) > 30
    for reference in references:
        value = document
        for key in reference.split("/"):
            value = value[key]


def test_results_fit_the_schema_of_the_description(client, document, examples):
    jsonschema = pytest.importorskip("jsonschema")
    answer = client.post("/v1/classify", content=(examples / "phantom-1.jpg").read_bytes()).json()
    operation = document["paths"]["/v1/classify"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    validator.validate(answer)
    assert not validator.is_valid({"label": "tumour"})


@pytest.mark.parametrize("names", [("a.jpg",), ("a.jpg", "b.jpg")])
def test_failures_fit_the_schema_of_the_description(client, document, names):
    jsonschema = pytest.importorskip("jsonschema")
    answer = client.post("/v1/classify", files=[("scan", (name, b"no picture")) for name in names])
    described = document["paths"]["/v1/classify"]["post"]["responses"][str(answer.status_code)]
    assert answer.status_code in (415, 422)
    schema = described["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())


def test_the_page_of_the_description_needs_nothing_from_elsewhere(client, document):
    page = client.get("/docs").text
    assert not re.search(r"(src|href)=\"/", page)  # a proxy may serve it below a path
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page
    assert "not a medical device" in page
    assert not re.search(r"<script|<style|style=|(src|href)=\"(https?:)?//", page)
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")


def requests_of(client):
    """Return how many requests each route had."""
    lines = re.findall(r'^mri_edge_requests_total{.*route="(.+?)".*} (.+)$', client.get("/metrics").text, re.MULTILINE)
    counts: Counter[str] = Counter()
    for route, count in lines:
        counts[route] += float(count)
    return counts


def test_schemathesis_finds_no_fault(server, client, document, tmp_path: Path):
    pytest.importorskip("schemathesis")
    # Short times of a request lead to status 504, which is no fault.
    operation = document["paths"]["/v1/classify"]["post"]
    operation["parameters"] = [field for field in operation["parameters"] if field["name"] != "timeout"]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    arguments = [
        "--url",
        server.url,
        "--max-examples",
        "8",
        "--phases",
        "coverage,fuzzing",
        "--checks",
        checks,
        "--request-timeout",
        "60",
    ]
    before = requests_of(client)
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(file), *arguments, "--seed", "1", "--no-color"],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "internal error" not in server.log
    after = requests_of(client)
    for path in document["paths"]:
        route = "/page/" if path == "/" else path
        assert after[route] > before[route], f"no request to {path}"
