"""Which of vLLM's routes are reachable through the edge: all that a real server has, none left out."""

from __future__ import annotations

import os

import pytest

from planning.edge import OPEN, ROUTES
from tests.serving import on_cpu, routes
from tests.serving.cluster import KEY, START_SECONDS, Cluster
from tests.serving.routes import Route

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def seen(cluster: Cluster) -> list[Route]:
    pod = cluster.models.pods[0]
    pod.wait_ready(START_SECONDS)
    engine = (pod.address, pod.port)
    return routes.seen(routes.of(engine, pod.log.read_text()), engine, cluster.edges[0], KEY)


def test_without_a_key_every_route_is_closed(seen: list[Route]) -> None:
    print(f"\nRoutes: {len(seen)} of vLLM, {sum(route.with_key != 404 for route in seen)} open with a key, 0 without")
    assert len(seen) >= 25, "vLLM has more routes than that: the list of them has not been read"
    assert {route.without_key for route in seen} == {401}, "nobody without a key learns which routes there are"


def test_with_a_key_only_the_allow_list_is_open(seen: list[Route]) -> None:
    opened = {(route.method, route.path) for route in seen if route.with_key != 404}
    there = {(route.method, route.path) for route in seen}
    assert opened == {(ROUTES[path], path) for path in OPEN} & there
    assert ("POST", "/invocations") in there - opened, "the route that runs completions without a key"
    assert ("GET", "/metrics") in there - opened
    answered = {route.path: route.engine for route in seen if route.path == "/invocations"}
    assert answered["/invocations"] not in (0, 404), "closed at the edge although the engine has it"


def test_the_page_of_routes_is_current(seen: list[Route]) -> None:
    page = routes.page(seen, on_cpu.VERSION)
    if os.environ.get("WRITE_ROUTES"):
        routes.PAGE.write_text(page)
    assert routes.PAGE.read_text() == page, "WRITE_ROUTES=1 make test-engine ARGS=tests/serving/test_routes.py"
