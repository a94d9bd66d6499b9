"""What the edge costs: its share of requests a second, latency, CPU and streams, beside direct access in one run.

The replica answers at once: first a second HAProxy, then streams of the tests' stand-in. A model would hide the edge's
share. With PRODUCTION_STACK_ROUTER the router of vLLM's production stack takes its turn too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import ssl
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.figure import Figure
from tests import debian
from tests.edge import certificates, haproxy
from tests.edge.stand import CHAT, NETWORK, plan, standing
from tests.edge.stand_in import PORT, Answer, Replica, ask, request

ROUTER = "PRODUCTION_STACK_ROUTER"
HOW = "make bench ARGS=edge"
ROUNDS, SECONDS, CONNECTIONS = 3, 3, 32
STREAMS, CHUNKS, EVERY = 64, 100, 0.02
KEY = "a key of the benchmark"
REPLICA = f"""\
global
    nbthread 1
defaults
    mode http
    timeout client 60s
frontend replica
    bind {NETWORK}.2:8000
    http-request wait-for-body time 1s if METH_POST
    http-request return status 200 content-type application/json string {{}}
"""
#: For wrk: what it sends, and what it tells, in microseconds.
SCRIPT = f"""\
wrk.method, wrk.body = "POST", '{{"model": "model", "messages": []}}'
wrk.headers = {{ ["Authorization"] = "Bearer {KEY}", ["Content-Type"] = "application/json" }}
function done(all, latency)
    local errors = all.errors.connect + all.errors.read + all.errors.write + all.errors.status + all.errors.timeout
    io.write(string.format('{{"requests": %d, "duration": %d, "p50": %d, "p99": %d, "errors": %d}}',
        all.requests, all.duration, latency:percentile(50), latency:percentile(99), errors))
end
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A way to the replica: where it begins, and the process, with its children, that is in the way."""

    address: tuple[str, int]
    pid: int | None = None
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Medians of the rounds: requests a second, µs of CPU for each, ms at one connection, s of all streams; MiB."""

    requests: float
    cpu: float
    p50: float
    p99: float
    streams: float
    memory: float


def figures() -> list[Figure]:
    """Key, allow-list, rate table, queue bound and TLS. Raises RuntimeError where an answer fails."""
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(_measure(Path(folder)))
    direct, edge, router = seen["direct"], seen["edge"], seen.get("router")
    rows = [
        ("requests a second, direct, of those through the edge", direct.requests / edge.requests, 15, "×",
         f"{edge.requests:,.0f} through it, with {edge.cpu:.0f} µs of its CPU for each; at one connection it adds "
         f"{_added(edge, direct)}"),
        (f"{STREAMS} streams through the edge, of the same direct", edge.streams / direct.streams, 1.1, "×",
         f"{edge.streams:.2f} s"),
        ("memory of the edge after that", edge.memory, 64, "MiB", ""),
    ]  # fmt: skip
    if router is None:
        print(
            f"left out: the router of vLLM's production stack, as {ROUTER} does not name its command", file=sys.stderr
        )
    else:
        rows += [
            ("requests a second of the production stack's router, of the edge's", router.requests / edge.requests, 0.1,
             "×", f"{router.requests:,.0f}; at one connection it adds {_added(router, direct)}; its streams "
             f"take {router.streams / direct.streams:.2f} × direct, its memory is {router.memory:.0f} MiB"),
            ("the edge's CPU for a request, of that router's", edge.cpu / router.cpu, 0.1, "×",
             f"of {router.cpu:,.0f} µs"),
        ]  # fmt: skip
    return [
        Figure(what=what, command=HOW, value=value, limit=limit, unit=unit, detail=detail)
        for what, value, limit, unit, detail in rows
    ]


def _added(target: Seen, direct: Seen) -> str:
    return f"p50 {target.p50 - direct.p50:.2f} ms, p99 {target.p99 - direct.p99:.2f} ms"


async def _measure(folder: Path) -> Mapping[str, Seen]:
    (folder / "wrk.lua").write_text(SCRIPT)
    (folder / "replica.cfg").write_text(REPLICA)
    trusted = ssl.create_default_context(cadata=certificates.put(folder, "edge"))
    keys = {"bench": {"sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests-per-minute": 1_000_000}}
    rounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    replica = (f"{NETWORK}.2", PORT)
    targets = {"direct": Target(address=replica)}
    with ExitStack() as processes:
        quick = processes.enter_context(
            _running([*haproxy.command(), "-db", "-f", str(folder / "replica.cfg")], folder)
        )
        if words := shlex.split(os.environ.get(ROUTER, "")):
            address = (f"{NETWORK}.3", 8001)
            words += ["--host", address[0], "--port", str(address[1]), "--routing-logic", "roundrobin"]
            words += ["--service-discovery", "static", "--static-models", "model"]
            words += ["--static-backends", f"http://{replica[0]}:{replica[1]}"]
            router = processes.enter_context(_running(words, folder))
            targets["router"] = Target(address=address, pid=router.pid)
        async with standing(folder, replicas=0, edge=plan(edge={"keys": keys, "tls-secret": "edge-tls"})) as stand:
            targets["edge"] = Target(address=stand.address, pid=stand.process.pid, tls=trusted)
            stand.ready.append(replica[0])
            for name, target in targets.items():
                await stand.until(lambda to=target: _answers(to), f"{name}: the replica is in use")
            for _ in range(ROUNDS):
                for name, target in targets.items():
                    for figure, value in (await asyncio.to_thread(_requests, target, folder)).items():
                        rounds[name][figure].append(value)
            quick.kill()
            quick.wait()
            slow = await Replica(replica[0]).start()
            for name, target in targets.items():
                await stand.until(lambda to=target: _answers(to), f"{name}: the replica of the streams is in use")
            for _ in range(ROUNDS):
                for name, target in targets.items():
                    rounds[name]["streams"].append(await _streams(target))
            slow.kill()
            memory = {name: sum(map(_mib, _processes(target))) for name, target in targets.items()}
    return {
        name: Seen(memory=memory[name], **{figure: median(values) for figure, values in seen.items()})
        for name, seen in rounds.items()
    }


@contextmanager
def _running(words: Sequence[str], folder: Path) -> Generator[subprocess.Popen[bytes]]:
    with (folder / f"{Path(words[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _requests(target: Target, folder: Path) -> dict[str, float]:
    """Both loads, one after the other."""
    before = sum(map(_cpu, _processes(target)))
    many = _wrk(target, CONNECTIONS, folder)
    cpu = sum(map(_cpu, _processes(target))) - before
    one = _wrk(target, 1, folder)
    return {
        "requests": many["requests"] / (many["duration"] / 1e6),
        "cpu": 1e6 * cpu / many["requests"],
        "p50": one["p50"] / 1000,
        "p99": one["p99"] / 1000,
    }


def _wrk(target: Target, connections: int, folder: Path) -> dict[str, float]:
    wrk = debian.program("wrk")
    url = f"http{'s' if target.tls else ''}://{target.address[0]}:{target.address[1]}{CHAT}"
    done = subprocess.run(
        [str(wrk.path), "-t1", f"-c{connections}", f"-d{SECONDS}s", "-s", str(folder / "wrk.lua"), url],
        env={**os.environ, **wrk.env},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    if told["errors"]:
        raise RuntimeError(f"{url}: {done.stdout}")
    return told


async def _ask(target: Target, body: Mapping[str, Any]) -> Answer:
    data = request(CHAT, {"model": "model", "messages": [], **body}, key=KEY, Content_Type="application/json")
    options = {"ssl": target.tls, "server_hostname": "edge"} if target.tls else {}
    return await ask(target.address, data, split=False, **options)


async def _answers(target: Target) -> bool:
    return (await _ask(target, {})).done


async def _streams(target: Target) -> float:
    """Seconds until the last of them is done."""
    body = {"stream": True, "chunks": CHUNKS, "every": EVERY}
    started = time.perf_counter()
    answers = await asyncio.gather(*(_ask(target, body) for _ in range(STREAMS)))
    if not all(answer.done for answer in answers):
        raise RuntimeError(f"{target.address}: {sum(not answer.done for answer in answers)} streams failed")
    return time.perf_counter() - started


def _processes(target: Target) -> list[Path]:
    """Of a target, in /proc: HAProxy's master has its worker beside it."""
    if target.pid is None:
        return []
    process = Path(f"/proc/{target.pid}")
    return [process, *(Path(f"/proc/{pid}") for pid in (process / f"task/{target.pid}/children").read_text().split())]


def _cpu(process: Path) -> float:
    """Seconds so far, user and system."""
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _mib(process: Path) -> float:
    """Resident memory."""
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
