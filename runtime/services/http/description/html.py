"""Write the OpenAPI description as one page without scripts, which needs nothing from other sites."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from mri_edge.inference.prediction import NOTICE

_EXAMPLES = """\
curl --data-binary @scan.jpg http://127.0.0.1:8000/v1/classify
curl -F scan=@a.dcm -F scan=@b.dcm 'http://127.0.0.1:8000/v1/classify?by=series'
curl --data-binary @study.zip 'http://127.0.0.1:8000/v1/classify?by=study'
curl -H 'Authorization: Bearer TOKEN' https://server.example/v2/models/lite"""


def page(document: dict[str, Any]) -> bytes:
    """Return the page for a description, as HTML."""
    info = document["info"]
    routes = [
        _route(method, path, operation, methods.get("parameters", []))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    schemas = [
        f"<details><summary><code>{escape(name)}</code></summary>"
        f"<pre>{escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in document["components"]["schemas"].items()
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])} {escape(info["version"])}: routes</title>
<link rel="stylesheet" href="docs.css">
</head>
<body>
<main>
<h1>{escape(info["title"])} {escape(info["version"])}</h1>
<p class="notice">{escape(NOTICE)}</p>
<p><a href="./">The page for people</a> · <a href="openapi.json">This description as OpenAPI 3.1</a></p>
<h2>Examples</h2>
<pre>{escape(_EXAMPLES)}</pre>
<h2>Routes</h2>
{"".join(routes)}
<h2>Schemas</h2>
{"".join(schemas)}
</main>
</body>
</html>
""".encode()


def _route(method: str, path: str, operation: dict[str, Any], shared: list[dict[str, Any]]) -> str:
    parameters = [*shared, *operation.get("parameters", [])]
    bodies = operation.get("requestBody", {}).get("content", {})
    rows = "".join(_row(parameter) for parameter in parameters)
    table = f"<table><tr><th>parameter</th><th>in</th><th>values</th><th></th></tr>{rows}</table>" if rows else ""
    body = f"<p>Body: {', '.join(f'<code>{escape(media)}</code>' for media in bodies)}</p>" if bodies else ""
    codes = ", ".join(operation["responses"])
    description = f"<p>{_marked(operation['description'])}</p>" if "description" in operation else ""
    return (
        f'<section><h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>'
        f"<p>{escape(operation['summary'])}</p>{description}{table}{body}<p>Statuses: {escape(codes)}</p></section>"
    )


def _row(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    values = " or ".join(schema["enum"]) if "enum" in schema else schema["type"]
    return (
        f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{parameter['in']}</td><td>{escape(values)}</td>"
        f"<td>{_marked(parameter.get('description', ''))}</td></tr>"
    )


def _marked(text: str) -> str:
    """Return a text as HTML; what is between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
