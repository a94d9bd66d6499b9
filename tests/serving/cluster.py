"""A cluster of loopback addresses: the rendered model servers and edge of one stack, with the cluster's DNS between."""

from __future__ import annotations

import copy
import hashlib
import json
import secrets
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox.engine import Recording
from sandbox.values import reveal
from tests import debian
from tests.components.harness import DEPLOYMENT, SECRET, recorded_preview
from tests.serving import on_cpu
from tests.serving.cluster_dns import TTL_SECONDS, ClusterDns
from tests.serving.container import Image
from tests.serving.kubelet import Deployment, Node

MODEL_ADDRESSES = ("127.0.0.2", "127.0.0.3")
EDGE_ADDRESSES = ("127.0.0.11", "127.0.0.12")
CONFIG_MAP = "kubernetes:core/v1:ConfigMap"
#: Requests that a replica works on at once. The plan's own bound would be hundreds, which two cores cannot carry.
AT_ONCE = 16
#: Made anew in every run; the stack is given its hash.
KEY = f"sk-{secrets.token_hex(24)}"
#: Seconds of the manifest and of the DNS cache pass so many times as fast. The edge's own timers do not, so it has
#: that much less time to hear of a change than it has in a cluster.
FAST = 2
#: Seconds until the edge has asked the DNS again, which it does every second.
EDGE_HEARS_SECONDS = 3
#: Seconds for an engine to start; alone on two cores it takes 40, beside other jobs a multiple.
START_SECONDS = 600


def rendered() -> Recording:
    """The unmodified program's preview of a stack with two replicas, one client key and a small batch."""
    key = {"sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    return recorded_preview(edge={"keys": {"load-test": key}}, vllm={"max-num-seqs": AT_ONCE})


def deployment(recording: Recording, name: str) -> Mapping[str, Any]:
    """A rendered Deployment by its logical name."""
    return recording.one(DEPLOYMENT, f"{name}-deployment").inputs


def with_defaults(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same Deployment as nearly everybody ships it: vLLM's and Kubernetes' defaults for how a pod stops."""
    usual = copy.deepcopy(dict(manifest))
    usual["spec"].pop("minReadySeconds", None)
    pod = usual["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 30
    (engine,) = pod["containers"]
    del engine["lifecycle"]
    at = engine["args"].index("--shutdown-timeout")
    del engine["args"][at : at + 2]
    return usual


class Cluster:
    """Two model servers, two edge pods and the DNS; `models` and `edge` are their Deployments."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.recording = rendered()
        self.folder = folder
        model = deployment(self.recording, "model")
        self._model_files = on_cpu.tiny_model(place, _context(model))
        metadata = model["metadata"]
        self.dns = ClusterDns(f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local", TTL_SECONDS / FAST)
        engine_image = on_cpu.image(place, folder / "vllm-image")
        self.models = Deployment(
            model,
            MODEL_ADDRESSES,
            Node(image=engine_image, fill=self._fill, adapt=on_cpu.container, folder=folder / "models", fast=FAST),
            self.dns.publish,
        )
        haproxy = debian.program("haproxy")
        edge_image = Image(
            folders=[haproxy.path, *haproxy.libraries],
            env={"PATH": f"{haproxy.path.parent}:/usr/sbin:/usr/bin", **haproxy.env},
            stop_signal=signal.SIGUSR1,  # STOPSIGNAL of the official image
        )
        self.edge = Deployment(
            deployment(self.recording, "edge"),
            EDGE_ADDRESSES,
            Node(image=edge_image, fill=self._fill, adapt=self._edge_container, folder=folder / "edge", fast=FAST),
            lambda ready: None,
        )
        (container,) = self.edge.manifest["spec"]["template"]["spec"]["containers"]
        self._edge_ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    @property
    def edges(self) -> list[tuple[str, int]]:
        """Where clients connect: what the load balancer would spread over."""
        return [(address, self._edge_ports["clients"]) for address in EDGE_ADDRESSES]

    @property
    def served_model(self) -> str:
        args = deployment(self.recording, "model")["spec"]["template"]["spec"]["containers"][0]["args"]
        return args[args.index("--served-model-name") + 1]

    def wait_known(self) -> None:
        """Until both replicas are ready and the edge has heard of them."""
        for pod in self.models.pods:
            pod.wait_ready(START_SECONDS)
        while sorted(self.dns.answer()) != sorted(MODEL_ADDRESSES):
            time.sleep(0.1)
        time.sleep(EDGE_HEARS_SECONDS)

    def edge_log(self) -> list[dict[str, Any]]:
        """What both edge pods have written about requests so far."""
        lines = "".join(pod.log.read_text() for pod in self.edge.pods).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def replicas_by_request(self) -> dict[str, str]:
        """Request id -> address of the replica that had it last."""
        return {line["id"]: line["replica"] for line in self.edge_log()}

    @contextmanager
    def running(self) -> Generator[Cluster]:
        """Both replicas and both edge pods ready; all of it gone afterwards."""
        try:
            self.models.start(START_SECONDS)
            self.edge.start(60)
            self.wait_known()
            yield self
        finally:
            self.edge.delete()
            self.models.delete()
            self.dns.close()

    def _edge_container(self, container: Mapping[str, Any], address: str) -> Mapping[str, Any]:
        """Its addresses come from variables, so that pods can share the machine's network."""
        here = {
            "EDGE_ADDRESS": f"{address}:{self._edge_ports['clients']}",
            "EDGE_ADMIN_ADDRESS": f"{address}:{self._edge_ports['admin']}",
            "CLUSTER_DNS": "{}:{}".format(*self.dns.address),
        }
        env = [{**variable, "value": here.get(variable["name"], variable["value"])} for variable in container["env"]]
        return {**container, "env": env}

    def _fill(self, volume: Mapping[str, Any], folder: Path) -> None:
        """What a volume holds when the containers start: the init container's weights, and projected files.

        The Secret with the token stays empty: only the init container mounts it, and that does not run here.
        """
        if volume["name"] == "weights":
            # The init container downloads; here the tiny model lies where the command line looks for the large one.
            path = deployment(self.recording, "model")["spec"]["template"]["spec"]["containers"][0]["args"][0]
            target = folder / Path(path).relative_to("/models")
            target.mkdir(parents=True)
            for file in self._model_files.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
        for source in volume.get("projected", {}).get("sources", ()):
            for name, text in self._projected(source).items():
                (folder / name).write_text(text)

    def _projected(self, source: Mapping[str, Any]) -> Mapping[str, str]:
        """The files of a projected ConfigMap or Secret. Both have names of Pulumi's making: there is one of each."""
        if "configMap" in source:
            return self.recording.one(CONFIG_MAP, "edge-configuration").inputs["data"]
        return reveal(self.recording.one(SECRET, "edge-keys").inputs["stringData"])


def _context(model: Mapping[str, Any]) -> int:
    args = model["spec"]["template"]["spec"]["containers"][0]["args"]
    return int(args[args.index("--max-model-len") + 1])
