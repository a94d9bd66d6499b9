"""The edge as it runs in the cluster: the plan's files, unchanged, with addresses from the environment."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from planning.edge import EdgePlan
from planning.plan import read_and_decide
from planning.stack_file import from_pulumi
from tests.edge import haproxy
from tests.edge.stand_in import PORT, Answer, Dns, Replica, ask, request

#: 127.x.y: other runs on this machine have another one.
NETWORK = f"127.{1 + os.getpid() // 250 % 250}.{1 + os.getpid() % 250}"
CHAT = "/v1/chat/completions"


def plan(**settings: Any) -> EdgePlan:
    """The edge of a small stack: two replicas of one model, or what the settings say."""
    chosen = {"preset": "qwen3-8b", "vm-size": "Standard_NC40ads_H100_v5", "replicas": 2}
    chosen = {"models": settings.pop("models")} if "models" in settings else chosen
    chosen |= {"environment": "development", **{key.replace("_", "-"): value for key, value in settings.items()}}
    bag = {f"aks-vllm:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in chosen.items()}
    return read_and_decide(from_pulumi({"azure-native:location": "eastus", **bag}, [], "test")).edge


#: Instead of a Secret, for tests that take either.
VAULT = {
    "id": "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform",
    "certificate": "llm-example-com",
}


def write(edge: EdgePlan, folder: Path) -> Path:
    """The files as the pod has them; a certificate is added by whoever wants TLS."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in edge.files.items():
        (folder / name).write_text(text)
    if edge.keys is not None:
        (folder / "keys.map").write_text(edge.keys)
    return folder


class Stand:
    """A running edge, its DNS and its replicas."""

    def __init__(self, edge: EdgePlan, folder: Path, replicas: list[Replica], names: list[str]) -> None:
        self.plan, self.folder, self.replicas, self.ready = edge, folder, replicas, names
        self.address, self.admin = (f"{NETWORK}.1", 8080), (f"{NETWORK}.1", 8404)
        self.log = folder / "stdout"

    def start(self) -> None:
        """The container's command, in its working directory."""
        addresses = {
            "EDGE_ADDRESS": f"{NETWORK}.1:8080",
            "EDGE_ADMIN_ADDRESS": f"{NETWORK}.1:8404",
            "CLUSTER_DNS": f"{NETWORK}.1:8053",
        }
        assert addresses.keys() == self.plan.env.keys(), "the pod has variables that the test does not know"
        words = [*haproxy.command(), *self.plan.command[1:]]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, cwd=self.folder, env={**os.environ, **addresses}, stdout=log, stderr=subprocess.STDOUT
            )

    def send(self, number: signal.Signals) -> None:
        """To HAProxy as the kubelet sends it to process 1."""
        self.process.send_signal(number)

    async def ask(self, path: str = CHAT, body: Any = None, **options: Any) -> Answer:
        """One request with a body, or none."""
        return await ask(self.address, request(path, body, **options))

    def lines(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    async def metrics(self) -> dict[str, float]:
        """What Prometheus reads."""
        answer = await ask(self.admin, request("/metrics", method="GET"))
        rows = (line.rpartition(" ") for line in answer.body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    async def until(self, condition: Any, what: str, seconds: float = 60) -> None:
        """Wait for something that is to come; a bound, not a measurement."""
        for _ in range(int(seconds / 0.05)):
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s; {self.log.read_text()[-2000:]}")

    async def serving(self) -> bool:
        """Whether every ready replica is known to the edge and passes its checks."""
        if self.process.poll() is not None:
            raise AssertionError(f"the edge has ended: {self.log.read_text()[-2000:]}")
        up = [
            value
            for name, value in (await self.metrics()).items()
            if "backend_active_servers" in name and "model-" in name
        ]
        return bool(up) and max(up) == len(self.ready)

    def memory_mib(self) -> float:
        """Resident memory of HAProxy's processes."""
        pids = [self.process.pid, *map(int, _children(self.process.pid))]
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@asynccontextmanager
async def standing(
    folder: Path, *, replicas: int = 2, edge: EdgePlan | None = None, start: bool = True
) -> AsyncGenerator[Stand]:
    """An edge with so many replicas, all of them ready and known to it."""
    edge = edge or plan()
    servers = [await Replica(f"{NETWORK}.{number}").start() for number in range(2, 2 + replicas)]
    ready = [server.address for server in servers]
    loop = asyncio.get_running_loop()
    name = f"{next(iter(edge.base_paths))}.vllm.svc.cluster.local"
    dns, _ = await loop.create_datagram_endpoint(lambda: Dns(name, ready), local_addr=(f"{NETWORK}.1", 8053))
    stand = Stand(edge, write(edge, folder), servers, ready)
    try:
        stand.start()
        if start:
            await stand.until(lambda: _listens(stand), "the edge listens")
            await stand.until(stand.serving, "every replica is in use")
        yield stand
    finally:
        stand.process.kill()
        stand.process.wait()
        for server in servers:
            server.kill()
        dns.close()


async def _listens(stand: Stand) -> bool:
    return (await ask(stand.admin, request("/healthz", method="GET"))).status == 200


__all__ = ["CHAT", "NETWORK", "PORT", "Stand", "plan", "standing", "write"]
