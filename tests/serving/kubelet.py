"""What the kubelet and the Deployment's controller do to pods, read from the rendered manifest alone.

A pod: start-up, readiness and liveness probes at their periods, time limits and thresholds; a container that ends is
started again. A deletion: the address leaves the Service at once, then the preStop sleep, SIGTERM, and SIGKILL when the
grace period (which the sleep is part of) is over. An update: one replica after the other by the rendered strategy, the
next one only when the new one has been ready for `minReadySeconds`; on full nodes a new pod waits until the old one
has let go of its GPUs.

Seconds of the manifest are divided by `fast`. Whatever is not the manifest's is not: the edge's own timers, and how
long the engine takes to start and to finish an answer.
"""

from __future__ import annotations

import http.client
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.serving import container
from tests.serving.container import Container, Image

#: Seconds before a container that ends again and again is started anew; it doubles up to five minutes.
BACKOFF_SECONDS = 10
#: What the API server fills in: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#Probe
PROBE = {"initialDelaySeconds": 0, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3}


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a pod finds where it runs: the images by container, the files of volumes that have any, where logs go."""

    image: Image
    fill: Callable[[Mapping[str, Any], Path], None]  # a volume of the pod, and the folder that stands for it
    adapt: Callable[
        [Mapping[str, Any], str], Mapping[str, Any]
    ]  # the container, and the pod's address, for this machine
    folder: Path  # logs and volumes
    fast: float = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a pod, at a time of `time.monotonic()`."""

    at: float
    pod: str
    what: str


@dataclass
class Pod:
    """One pod and the thread that is its kubelet; `changed` is told when its readiness may have changed."""

    name: str
    template: Mapping[str, Any]
    address: str
    node: Node
    changed: Callable[[], None]
    events: list[Event]
    before_term: Callable[[Pod], None] = lambda pod: None
    ready_since: float | None = None
    restarts: int = 0
    crashes: int = 0  # that a test wanted
    container: Container | None = None
    _deleted: threading.Event = field(default_factory=threading.Event)
    _gone: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.spec = self.template["spec"]
        (main,) = self.spec["containers"]
        self.main = self.node.adapt(main, self.address)
        self.port = self.main["ports"][0]["containerPort"]
        self.log = self.node.folder / f"{self.name}.log"
        self._volumes: dict[str, Path] = {}
        for volume in self.spec.get("volumes", ()):
            folder = self.node.folder / self.name / volume["name"]
            folder.mkdir(parents=True)
            self.node.fill(volume, folder)
            self._volumes[volume["name"]] = folder
        threading.Thread(target=self._live, name=self.name, daemon=True).start()

    @property
    def in_service(self) -> bool:
        """Whether the Service's endpoints hold it: ready, and not being deleted."""
        return self.ready_since is not None and not self._deleted.is_set()

    def delete(self) -> None:
        """What the API server does first: from now on the pod is terminating, so no endpoint."""
        self._say("deleted")
        self._deleted.set()
        self.changed()

    def crash(self) -> None:
        """The main process dies, as by a fault of its own; the kubelet will start the container again."""
        if self.container is None:
            raise RuntimeError(f"{self.name} has not started yet")
        self.crashes += 1
        self.container.kill()

    def wait_gone(self, seconds: float) -> None:
        if not self._gone.wait(seconds):
            raise TimeoutError(f"{self.name} still runs {seconds:.0f} s later: see {self.log}")

    def wait_ready(self, seconds: float) -> None:
        """Raises TimeoutError, with the log's end, where it does not become ready, or ends before it is."""
        until = time.monotonic() + seconds
        while not self.in_service:
            if self.restarts > self.crashes or time.monotonic() > until:
                raise TimeoutError(f"{self.name} does not become ready: {self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _live(self) -> None:
        backoff = 0.0
        while not self._deleted.is_set():
            self._start()
            self._watch()
            if not self._deleted.is_set():
                self._unready()
                self._say("ended")
                self._deleted.wait(backoff)
                backoff = min(max(BACKOFF_SECONDS, 2 * backoff), 300) / self.node.fast
                self.restarts += 1
        self._stop()
        self._say("gone")
        self._gone.set()

    def _start(self) -> None:
        self._say("started")
        self.container = container.start(
            self.spec,
            self.main,
            image=self.node.image,
            env=self._env(),
            volumes=self._volumes,
            log=self.log,
        )

    def _watch(self) -> None:
        """Probes, until the pod is deleted or its container ends; a probe that gives up kills it."""
        startup, readiness, liveness = (
            {**PROBE, **self.main[kind]} if kind in self.main else None
            for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        )
        failures = 0
        delays = [probe["initialDelaySeconds"] for probe in (startup, readiness, liveness) if probe]
        if not self._sleep(max(delays, default=0)):
            return None
        while startup and not self._probe(startup):
            failures += 1
            if failures >= startup["failureThreshold"]:
                self._say("start-up probe gives up")
                return self._kill()
            if not self._sleep(startup["periodSeconds"]):
                return None
        self._say("up")
        next_ready = next_live = time.monotonic()
        unready = dead = 0
        while True:
            now = time.monotonic()
            if readiness and now >= next_ready:
                next_ready += readiness["periodSeconds"] / self.node.fast
                good = self._probe(readiness)
                unready = 0 if good else unready + 1
                if good and self.ready_since is None:
                    self.ready_since = time.monotonic()
                    self._say("ready")
                    self.changed()
                elif unready >= readiness["failureThreshold"]:
                    self._unready()
            if liveness and now >= next_live:
                next_live += liveness["periodSeconds"] / self.node.fast
                dead = 0 if self._probe(liveness) else dead + 1
                if dead >= liveness["failureThreshold"]:
                    self._say("liveness probe gives up")
                    return self._kill()
            upcoming = min(next_ready if readiness else math.inf, next_live if liveness else math.inf)
            if not self._sleep((upcoming - time.monotonic()) * self.node.fast):
                return None

    def _sleep(self, seconds: float) -> bool:
        """Whether the pod still lives after so many seconds of the manifest."""
        until = time.monotonic() + seconds / self.node.fast
        while time.monotonic() < until:
            if self._deleted.wait(0.05) or not self._running:
                return False
        return not self._deleted.is_set() and self._running

    @property
    def _running(self) -> bool:
        return self.container is not None and self.container.running

    def _probe(self, probe: Mapping[str, Any]) -> bool:
        """Whether GET of the path answers with 200 to 399; time limits are not shortened."""
        target = probe["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self.main["ports"]}
        connection = http.client.HTTPConnection(
            self.address, ports.get(target["port"], target["port"]), timeout=probe["timeoutSeconds"]
        )
        try:
            connection.request("GET", target["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError:
            return False
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    def _unready(self) -> None:
        if self.ready_since is not None:
            self.ready_since = None
            self._say("not ready")
            self.changed()

    def _kill(self) -> None:
        if self.container:
            self.container.kill()
            self.container.process.wait()

    def _stop(self) -> None:
        """A deletion, once the address has left the Service."""
        fast = self.node.fast
        ends = time.monotonic() + self.spec["terminationGracePeriodSeconds"] / fast
        hook = self.main.get("lifecycle", {}).get("preStop", {})
        if unknown := set(hook) - {"sleep"}:
            raise NotImplementedError(f"a preStop hook of this kind: {unknown}")
        if hook and self._running:
            self._say("preStop")
            pause = min(ends, time.monotonic() + hook["sleep"]["seconds"] / fast)
            while time.monotonic() < pause and self._running:
                time.sleep(0.05)
        if not self.container:
            return
        self.before_term(self)
        self._say("SIGTERM")
        self.container.terminate()
        while self._running and time.monotonic() < ends:
            time.sleep(0.05)
        if self._running:
            self._say("SIGKILL")
        self._kill()

    def _env(self) -> dict[str, str]:
        """The container's variables, those from the pod's own fields included."""
        fields = {"status.podIP": self.address, "metadata.name": self.name}
        values = {}
        for variable in self.main.get("env", ()):
            if "value" in variable:
                values[variable["name"]] = variable["value"]
            else:
                values[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        return values

    def _say(self, what: str) -> None:
        self.events.append(Event(at=time.monotonic(), pod=self.name, what=what))


class Deployment:
    """Replicas of a rendered Deployment at fixed addresses, and the endpoints of its Service."""

    def __init__(
        self, manifest: Mapping[str, Any], addresses: Sequence[str], node: Node, publish: Callable[[list[str]], None]
    ) -> None:
        self.manifest, self.addresses, self.node, self._publish = manifest, addresses, node, publish
        self.events: list[Event] = []
        self.pods: list[Pod] = []
        self.before_term: Callable[[Pod], None] = lambda pod: None
        self._number = 0
        self._lock = threading.Lock()

    def start(self, ready_within: float) -> None:
        """As many replicas as there are addresses, all at once."""
        self.pods = [self._pod(address) for address in self.addresses]
        for pod in self.pods:
            pod.wait_ready(ready_within)

    def update(self, manifest: Mapping[str, Any], ready_within: float) -> None:
        """Another pod template: old replicas go one at a time, and a new one takes each one's place."""
        self.manifest = manifest
        strategy = manifest["spec"]["strategy"]["rollingUpdate"]
        if (strategy["maxSurge"], strategy["maxUnavailable"]) != (0, 1):
            raise NotImplementedError(f"another strategy than one at a time without surge: {strategy}")
        for place, old in enumerate(list(self.pods)):
            old.before_term = self.before_term
            old.delete()
            old.wait_gone(old.spec["terminationGracePeriodSeconds"] / self.node.fast + 30)
            new = self.pods[place] = self._pod(old.address)
            new.wait_ready(ready_within)
            time.sleep(manifest["spec"].get("minReadySeconds", 0) / self.node.fast)

    def delete(self) -> None:
        """The end of a session: no drain, nobody is served any more."""
        for pod in self.pods:
            pod.spec = {**pod.spec, "terminationGracePeriodSeconds": 0}
            pod.delete()
        for pod in self.pods:
            pod.wait_gone(30)

    def _pod(self, address: str) -> Pod:
        self._number += 1
        name = f"{self.manifest['metadata']['name']}-{self._number}"
        return Pod(name, self.manifest["spec"]["template"], address, self.node, self._endpoints, self.events)

    def _endpoints(self) -> None:
        with self._lock:
            self._publish([pod.address for pod in self.pods if pod.in_service])
