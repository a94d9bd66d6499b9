"""The pieces that stand for a cluster do what a cluster does; without this, the other tests here would prove little."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.serving import on_cpu
from tests.serving.cluster import deployment, rendered, with_defaults
from tests.serving.cluster_dns import ClusterDns
from tests.serving.container import Image
from tests.serving.kubelet import Deployment, Node

ADDRESS = "127.0.0.21"
NAME = "model.vllm.svc.cluster.local"


def _engine() -> Mapping[str, Any]:
    return deployment(rendered(), "model")["spec"]["template"]["spec"]["containers"][0]


def test_the_engine_gets_the_rendered_words_but_for_what_the_table_names() -> None:
    words = _engine()["args"]
    ours = on_cpu.arguments(words, ADDRESS)
    assert ours[-3:] == [*on_cpu.ADDED, ADDRESS]
    changed = {words[at - 1]: word for at, word in enumerate(ours[:-3]) if word != words[at]}
    assert changed == {name: value for name, value in on_cpu.OPTIONS.items() if value is not None}
    assert "--shutdown-timeout" in ours, "what the drain tests are about"


def test_an_option_that_nobody_has_looked_at_stops_the_tests() -> None:
    with pytest.raises(KeyError, match="--kv-offloading-size"):
        on_cpu.arguments([*_engine()["args"], "--kv-offloading-size", "8"], ADDRESS)


def test_the_usual_defaults_differ_in_nothing_but_how_a_pod_stops() -> None:
    ours = deployment(rendered(), "model")
    usual = with_defaults(ours)
    pod, other = (each["spec"]["template"]["spec"] for each in (ours, usual))
    (engine,), (container,) = pod["containers"], other["containers"]
    assert "lifecycle" in engine and "lifecycle" not in container
    assert next(word for word in engine["args"] if word not in container["args"]) == "--shutdown-timeout"
    assert {**engine, "args": 0, "lifecycle": 0} == {**container, "args": 0, "lifecycle": 0}
    differing = {key for key in pod if pod[key] != other[key]} - {"containers"}
    assert differing == {"terminationGracePeriodSeconds"}


def _ask(dns: ClusterDns, name: str, kind: int = 1) -> tuple[int, list[str]]:
    """Response code and addresses, by a question with EDNS as HAProxy sends it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    edns = b"\0" + struct.pack("!HHIH", 41, 8192, 0, 0)
    question = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 1) + labels + b"\0" + struct.pack("!HH", kind, 1) + edns
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(question, dns.address)
        reply = client.recv(4096)
    number, flags, _, answers = struct.unpack_from("!HHHH", reply)
    assert number == 7 and flags & 0x8000
    at = 12 + len(labels) + 5
    return flags & 15, [socket.inet_ntoa(reply[at + 16 * row + 12 : at + 16 * row + 16]) for row in range(answers)]


def test_the_dns_tells_of_a_change_as_late_as_its_cache_allows() -> None:
    dns = ClusterDns(NAME, ttl_seconds=1)
    try:
        assert _ask(dns, NAME) == (3, []), "a headless Service without endpoints has no name"
        changed = time.monotonic()
        dns.publish(["127.0.0.2", "127.0.0.3"])
        assert _ask(dns, NAME) == (3, [])
        while _ask(dns, NAME)[0]:
            time.sleep(0.02)
        assert time.monotonic() - changed >= 1
        assert _ask(dns, NAME.upper()) == (0, ["127.0.0.2", "127.0.0.3"])
        assert _ask(dns, NAME, kind=28) == (0, []), "there are no IPv6 addresses, and the name exists"
        assert _ask(dns, f"other.{NAME}") == (3, [])
    finally:
        dns.close()


#: Answers probes until it is told to stop; the word after `SERVER` is what it then does.
SERVER = """
import http.server, os, signal, sys, time
rights = open("/proc/self/status").read().split("CapEff:")[1].split()[0]
print("uid", os.getuid(), "pid", os.getpid(), rights, flush=True)
def stop(*_):
    print("told", flush=True)
    if sys.argv[1] == "goes": os._exit(0)
signal.signal(signal.SIGTERM, stop)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash": os._exit(1)
        self.send_response(200); self.end_headers()
http.server.HTTPServer((os.environ["ADDRESS"], 8000), Handler).serve_forever()
"""


def _pods(folder: Path, manner: str, published: list[list[str]]) -> Deployment:
    """One replica of SERVER in a pod with every kind of timer."""
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "failureThreshold": 30}
    container = {
        "name": "server",
        "command": [str(Path(sys.base_prefix, "bin", "python3")), "-c", SERVER],
        "args": [manner],
        "env": [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "startupProbe": probe,
        "readinessProbe": probe,
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
    }
    pod = {
        "containers": [container],
        "terminationGracePeriodSeconds": 4,
        "securityContext": {"runAsUser": 2000, "runAsGroup": 0},
    }
    strategy = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    manifest = {"metadata": {"name": "p"}, "spec": {"strategy": strategy, "template": {"spec": pod}}}
    node = Node(
        image=Image(folders=[Path(sys.base_prefix)]),
        fill=lambda volume, folder: None,
        adapt=lambda container, address: container,
        folder=folder,
        fast=2,
    )
    return Deployment(manifest, [ADDRESS], node, published.append)


@pytest.mark.engine
@pytest.mark.parametrize("manner", ["goes", "stays"])
def test_a_pod_leaves_the_service_first_and_dies_at_the_end_of_its_grace_period(tmp_path: Path, manner: str) -> None:
    (folder := tmp_path / "pods").mkdir()
    published: list[list[str]] = []
    pods = _pods(folder, manner, published)
    pods.start(60)
    assert published == [[ADDRESS]]
    pods.update(pods.manifest, 60)
    old = [event for event in pods.events if event.pod == "p-1"]
    ends = ["SIGTERM", "gone"] if manner == "goes" else ["SIGTERM", "SIGKILL", "gone"]
    assert [event.what for event in old] == ["started", "up", "ready", "deleted", "preStop", *ends]
    assert published[1:] == [[], [ADDRESS]], "out of the Service at once, in again when the new one is ready"
    at = {event.what: event.at for event in old}
    assert at["SIGTERM"] - at["deleted"] >= 1, "preStop: two seconds, at twice the speed"
    if manner == "stays":
        assert at["SIGKILL"] - at["deleted"] >= 2, "the grace period holds from the deletion on"
    pods.delete()
    assert (folder / "p-1.log").read_text().split()[:5] == ["uid", "2000", "pid", "1", "0000000000000000"]
    assert "told" in (folder / "p-1.log").read_text()


@pytest.mark.engine
def test_a_container_that_ends_is_started_again(tmp_path: Path) -> None:
    (folder := tmp_path / "pods").mkdir()
    published: list[list[str]] = []
    pods = _pods(folder, "goes", published)
    pods.start(60)
    (pod,) = pods.pods
    pod.crash()
    while pod.restarts == 0:
        time.sleep(0.05)
    pod.wait_ready(60)
    pods.delete()
    assert [event.what for event in pods.events][3:7] == ["not ready", "ended", "started", "up"]
    assert published == [[ADDRESS], [], [ADDRESS], []]
