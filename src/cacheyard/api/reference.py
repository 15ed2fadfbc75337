"""The API's own reference: `/openapi.json`, and `/docs`, a page to read and to try it out.

Mounted by the application, outside the request handlers: both need no token. The page is Swagger UI from an
installed package, so it works without the internet.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from cacheyard.contract.document import load

NOT_BUILT = "(not built yet: answers 501)"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>cacheyard API</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<link rel="icon" href="docs/static/favicon-32x32.png">
</head>
<body>
<div id="reference"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: -1,
  filter: true,
  validatorUrl: null
});
"""


def routes(built: Collection[str]) -> list[BaseRoute]:
    """The routes. `built` has the ids of the operations that answer; the others are marked."""
    ids = frozenset(built)

    def openapi(_: Request) -> Response:
        return Response(_document(ids), media_type="application/json")

    def docs(_: Request) -> Response:
        return HTMLResponse(PAGE)

    def start(_: Request) -> Response:
        return Response(START, media_type="text/javascript")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/docs/start.js", start),
        Mount("/docs/static", StaticFiles(directory=str(swagger_ui_path))),
    ]


@cache
def _document(built: frozenset[str]) -> bytes:
    """The contract as it is served: operations that only answer 501 say so in their summary."""
    contract = load()
    operations: list[dict[str, Any]] = [o for item in contract["paths"].values() for o in item.values()]
    for operation in operations:
        if operation["operationId"] not in built:
            operation["summary"] += f" {NOT_BUILT}"
    return msgspec.json.encode(contract)
