"""Replicas and edges that come and go under load: nothing is lost, nothing is held longer than it must be.

Times are what the load is made of, never what is asserted: a slow machine makes these tests longer, not red.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.edge.stand import CHAT, Stand, plan, standing
from tests.edge.stand_in import Answer, Replica, ask, connection, request

STREAMS, PER_SECOND, SECONDS = 64, 50, 5
STREAM = request(CHAT, {"chunks": 60, "every": 0.2})  # 12 seconds
SHORT = request(CHAT, {"after": 0.05})
DNS_IS_READ_EVERY = 1.0  # `hold valid` and `timeout resolve` of the configuration, in seconds


async def _streams(stand: Stand) -> list[asyncio.Future[Answer]]:
    """So many streams under way, their first bytes received by the edge."""
    streams: list[asyncio.Future[Answer]] = [asyncio.ensure_future(ask(stand.address, STREAM)) for _ in range(STREAMS)]
    await stand.until(lambda: sum(r.active for r in stand.replicas) == STREAMS, "all streams are under way")
    return streams


async def _arrivals(stand: Stand) -> list[asyncio.Future[Answer]]:
    """New requests at an even rate, each on a connection of its own, never retried."""
    answers = []
    for _ in range(PER_SECOND * SECONDS):
        answers.append(asyncio.ensure_future(ask(stand.address, SHORT)))
        await asyncio.sleep(1 / PER_SECOND)
    return answers


async def _outcome(answers: list[asyncio.Future[Answer]]) -> Counter[str]:
    done = await asyncio.gather(*answers)
    return Counter("done" if answer.done else f"{answer.status}{' cut' if answer.cut else ''}" for answer in done)


async def _leave(stand: Stand, victim: Replica, style: str) -> None:
    """One second into the load a replica is taken away, as the kubelet would: the endpoint goes first."""
    await asyncio.sleep(1)
    if style != "kill":
        stand.ready.remove(victim.address)  # readiness: its name leaves the DNS
        # The rest of the preStop sleep, in fast motion.
        await stand.until(lambda: _forgotten(stand), "the edge has forgotten it")
    if style == "closes":
        victim.close_listener()
    elif style == "refuses":
        victim.refusing = True  # as vLLM: 500 for what is new, /health still 200
    else:
        victim.kill()


async def _forgotten(stand: Stand) -> bool:
    up = [v for name, v in (await stand.metrics()).items() if "backend_active_servers" in name and "model-" in name]
    return up == [len(stand.ready)]


@pytest.mark.parametrize("style", ["closes", "refuses"])
def test_a_replica_that_leaves_loses_nothing(tmp_path: Path, style: str) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            streams = await _streams(stand)
            victim, _ = stand.replicas
            share = victim.active / STREAMS
            assert share >= 0.25, "a victim that serves nobody proves nothing"
            leaving = asyncio.ensure_future(_leave(stand, victim, style))
            arrivals = await _arrivals(stand)
            await leaving
            assert await _outcome(arrivals) == {"done": PER_SECOND * SECONDS}, "a new request was lost"
            assert await _outcome(streams) == {"done": STREAMS}, "a stream was cut"
            assert victim.served > STREAMS * 0.25, "it took new requests before it left"

    asyncio.run(run())


def test_without_the_drain_requests_are_lost(tmp_path: Path) -> None:
    """The same load and a replica that refuses before the edge has heard of it: the test above can fail."""

    async def run() -> None:
        async with standing(tmp_path) as stand:
            victim, _ = stand.replicas
            victim.refusing = True
            outcome = await _outcome(await _arrivals(stand))
            assert outcome["500"] >= PER_SECOND * SECONDS / 4, outcome

    asyncio.run(run())


def test_a_killed_replica_loses_only_what_had_begun_on_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            streams = await _streams(stand)
            victim, _ = stand.replicas
            begun = victim.active  # short requests may be on it too when it dies
            leaving = asyncio.ensure_future(_leave(stand, victim, "kill"))
            arrivals = await _arrivals(stand)
            await leaving
            outcome = await _outcome(streams)
            assert outcome["200 cut"] == begun, outcome
            assert outcome["done"] == STREAMS - begun, "a stream on the other replica was cut"
            new = await _outcome(arrivals)
            # Sent to it and not answered: whether it had worked on them, nobody can know, so nobody repeats them.
            assert new["502"] <= 8, new
            assert new["done"] + new["502"] == PER_SECOND * SECONDS, new

    asyncio.run(run())


def test_more_than_fits_is_told_to_come_back(tmp_path: Path) -> None:
    """Five times what two replicas take: the bound holds, the queue is bounded, the rest gets 429."""

    async def run() -> None:
        edge = plan(vllm={"max-num-seqs": 8})
        (bound,), (queue,) = edge.concurrency.values(), edge.queue.values()
        assert bound == 4, "half of what a replica takes, as there are two edges"
        async with standing(tmp_path, edge=edge) as stand:
            capacity = bound * len(stand.replicas)
            held = request(CHAT, {"after": 3})
            answers = await asyncio.gather(*(ask(stand.address, held) for _ in range(5 * capacity)))
            counted = Counter(answer.status for answer in answers)
            assert counted == {200: capacity + queue, 429: 4 * capacity - queue}, counted
            assert all(answer.headers.get("retry-after") for answer in answers if answer.status == 429)
            assert [replica.peak for replica in stand.replicas] == [bound, bound], "the bound of a replica"
            assert (await stand.ask(CHAT, {})).status == 200, "the edge is as it was"

    asyncio.run(run())


def test_a_client_that_hangs_up_frees_its_place(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            loop = asyncio.get_running_loop()
            for body in ({"chunks": 600, "every": 0.1}, {"after": 60}):
                before = sum(len(replica.hang_ups) for replica in stand.replicas)
                async with connection(stand.address) as (_, writer):
                    writer.write(request(CHAT, body))
                    await stand.until(lambda: any(replica.active for replica in stand.replicas), "it is worked on")
                left = loop.time()
                await stand.until(
                    lambda seen=before: sum(len(replica.hang_ups) for replica in stand.replicas) > seen,
                    f"the replica hears of it: {body}",
                    seconds=20,  # the answer itself takes three times as long
                )
                assert max(hang_up for replica in stand.replicas for hang_up in replica.hang_ups) >= left

    asyncio.run(run())


def test_an_edge_that_stops_lets_every_answer_finish(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            streams = await _streams(stand)
            async with connection(stand.address) as (reader, writer):  # a client that keeps its connection
                writer.write(request(CHAT, {}))
                await reader.readuntil(b"{}")
                stand.send(signal.SIGUSR1)
                await stand.until(lambda: _refuses(stand), "nothing new is taken")
                writer.write(request(CHAT, {}))
                last = await reader.readuntil(b"{}")
                assert b"200 OK" in last, "its next request was lost"
                assert b"connection: close" in last.lower(), "it must go elsewhere with the one after"
            assert await _outcome(streams) == {"done": STREAMS}, "a stream was cut"
            assert await asyncio.to_thread(stand.process.wait, 60) == 0

    asyncio.run(run())


async def _refuses(stand: Stand) -> bool:
    return (await ask(stand.address, SHORT)).status == 0


def test_a_reload_cuts_nobody_off(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            streams = await _streams(stand)
            arriving = asyncio.ensure_future(_arrivals(stand))
            await asyncio.sleep(1)
            stand.send(signal.SIGUSR2)
            outcome = await _outcome(await arriving)
            assert outcome["done"] + outcome["503"] == PER_SECOND * SECONDS, outcome
            # The new process asks the DNS first; until it knows, it says 503 and when to come back.
            assert outcome["503"] <= PER_SECOND * (1 + DNS_IS_READ_EVERY), outcome
            assert await _outcome(streams) == {"done": STREAMS}, "a stream was cut"

    asyncio.run(run())
