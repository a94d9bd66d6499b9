"""Every route that a real vLLM has, and what becomes of it behind the edge: `docs/routes.md`."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "routes.md"
#: Routes that its OpenAPI document leaves out: seen on vLLM 0.32 and named by vllm-project/vllm#58144.
UNDOCUMENTED = (
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
    ("GET", "/generative_scoring"),
    ("GET", "/is_scaling_elastic_ep"),
    ("GET", "/kv_event_sources"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/redoc"),
    ("POST", "/generative_scoring"),
    ("POST", "/is_scaling_elastic_ep"),
    ("POST", "/scale_elastic_ep"),
)
NOT_THERE = (404, 405)
_LOGGED = re.compile(r"Route: (\S+), Methods: (.+)$", re.M)


@dataclass(frozen=True, order=True, kw_only=True)
class Route:
    """One route and its status: on vLLM itself, at the edge without a key, and with one. 0: no answer."""

    path: str
    method: str
    engine: int
    without_key: int
    with_key: int


def of(engine: tuple[str, int], log: str) -> list[tuple[str, str]]:
    """(method, path) of every route: those of the OpenAPI document, those the server logs, those known besides."""
    document = json.loads(_ask(engine, "GET", "/openapi.json")[1])
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    logged = {(method, path) for path, methods in _LOGGED.findall(log) for method in methods.split(", ")}
    return sorted(documented | logged | set(UNDOCUMENTED), key=lambda route: (route[1], route[0]))


def seen(routes: Iterable[tuple[str, str]], engine: tuple[str, int], edge: tuple[str, int], key: str) -> list[Route]:
    """Each asked three times, with an empty JSON object where there is a body; a path's parameters are filled in.

    What is in no list of the server's own and answers that it does not exist is left out.
    """
    found = []
    for method, path in routes:
        asked = re.sub(r"{[^}]*}", "x", path)
        status = _ask(engine, method, asked)[0]
        if status in NOT_THERE and asked == path:
            continue
        found.append(
            Route(
                path=path,
                method=method,
                engine=status,
                without_key=_ask(edge, method, asked)[0],
                with_key=_ask(edge, method, asked, key)[0],
            )
        )
    return found


def page(routes: Iterable[Route], version: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {route.method} `{route.path}` | {'closed' if route.engine in (401, 403) else 'open'} "
        f"| closed ({route.without_key}) | {'closed (404)' if route.with_key == 404 else '**open**'} |"
        for route in routes
    ]
    opened = sum("**open**" in row for row in rows)
    return "\n".join(
        [
            "# Routes",
            "",
            f"Every route of vLLM {version}, asked on a running server and through the edge; `make test-engine` fails",
            f"where this page says anything else. Behind the edge {opened} of {len(rows)} are open, and only to those",
            "who have a key; `aks-vllm:edge.paths` chooses them. vLLM's own `--api-key` would leave many of the others",
            "open, `/invocations` among them (vllm-project/vllm#58144).",
            "",
            "| route | vLLM, asked without a key | edge, without a key | edge, with a key |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _ask(server: tuple[str, int], method: str, path: str, key: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, body=b"{}" if method in ("POST", "PUT", "PATCH") else None, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
