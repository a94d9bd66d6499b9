"""What the edge and a real engine do together: hang-ups, overload, and where secrets are not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.components.harness import TOKEN, plain_strings
from tests.serving.clients import Connection, Load, Outcome, Request, ask, kinds, read_head
from tests.serving.cluster import AT_ONCE, KEY, MODEL_ADDRESSES, Cluster
from tests.serving.engine_state import RUNNING, WAITING, gauge, peaks

pytestmark = pytest.mark.engine

#: So long that no engine ends it by itself while a test looks on.
ENDLESS_TOKENS = 60_000
NOTICED_SECONDS = 30  # at most; what it takes is printed, and `make bench ARGS=losses` holds it to its limit


@pytest.fixture(autouse=True)
def both_ready(cluster: Cluster) -> None:
    """Whatever a test before has done to them."""
    cluster.wait_known()
    _wait(lambda: _running() == 0, 120)


def _running() -> float:
    return sum(gauge(address, RUNNING) or 0 for address in MODEL_ADDRESSES)


def _wait(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it holds; raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "silent"])
def test_a_client_that_hangs_up_frees_its_place_in_the_engine(cluster: Cluster, stream: bool) -> None:
    async def hang_up() -> float:
        question = {
            "model": cluster.served_model,
            "prompt": "for ever",
            "max_tokens": ENDLESS_TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
        body = json.dumps(question).encode()
        connection = Connection(*cluster.edges[0])
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader = await connection.send(head, body)
        if stream:
            assert (await read_head(reader))[0] == 200
        await asyncio.to_thread(_wait, lambda: _running() == 1, 60)
        connection.close()
        return await asyncio.to_thread(_wait, lambda: _running() == 0, NOTICED_SECONDS)

    seconds = asyncio.run(hang_up())
    print(f"\nHang-up, {'streaming' if stream else 'silent'}: the engine has let go of it after {seconds:.2f} s")


def test_five_times_the_load_is_refused_with_a_time_to_come_back_and_never_reaches_the_engine(cluster: Cluster) -> None:
    capacity = AT_ONCE * len(MODEL_ADDRESSES)
    load = Load(
        addresses=cluster.edges,
        model=cluster.served_model,
        key=KEY,
        clients=5 * capacity,
        tokens=lambda chance: chance.randint(60, 120),
        seed=6,
    )
    with peaks(MODEL_ADDRESSES, [RUNNING, WAITING]) as most, load.running():
        load.wait_for(12 * capacity, 900)
    print(
        f"\nOverload by {5 * capacity} clients: {kinds(load.requests)}; "
        f"at most {max(most.values()):.0f} in an engine, bound {AT_ONCE}"
    )
    assert {request.outcome for request in load.requests} == {Outcome.COMPLETE, Outcome.REFUSED}, [
        r for r in load.requests if r.detail
    ][:5]
    assert {request.status for request in load.requests if request.outcome is Outcome.REFUSED} == {429}
    assert all(0 < peak <= AT_ONCE for peak in most.values()), "a replica works on no more than its batch holds"


def test_neither_token_nor_keys_are_anywhere_but_in_their_secrets(cluster: Cluster) -> None:
    asked = Request(id="secrets-1", stream=False, tokens=8)
    asyncio.run(ask(Connection(*cluster.edges[0]), asked, cluster.served_model, KEY))
    assert asked.outcome is Outcome.COMPLETE, asked
    assert cluster.replicas_by_request()["secrets-1"] in MODEL_ADDRESSES, "the search must have a log to look into"
    places = {
        "the rendered objects": "\n".join(plain_strings([r.inputs for r in cluster.recording.registrations])),
        **{f"{path}": path.read_bytes().decode(errors="replace") for path in _files(cluster.folder)},
        **_processes(cluster),
    }
    assert sum(name.endswith("/environ") for name in places) >= 4 and len(places) > 20, sorted(places)
    found = [(place, secret[:3]) for place, text in places.items() for secret in (TOKEN, KEY) if secret in text]
    assert not found


def _files(folder: Path) -> list[Path]:
    """Logs of every pod there was, and everything on their volumes."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 50 << 20]


def _processes(cluster: Cluster) -> dict[str, str]:
    """Command line and environment of every process inside every container, and of what holds the container."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    roots = {pod.container.process.pid for pod in (*cluster.models.pods, *cluster.edge.pods) if pod.container}
    ours = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    texts = {}
    for pid in ours:
        for name in ("cmdline", "environ"):
            try:
                texts[f"/proc/{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
            except OSError:
                continue
    return texts
