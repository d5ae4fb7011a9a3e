"""Serve a plain Starlette application that returns the body of a request, the bound for `mri-edge serve`.

Arguments: PORT.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    """Return the body."""
    return Response(await request.body())


app = Starlette(routes=[Route("/", echo, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False, ws="none")
