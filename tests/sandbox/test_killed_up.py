"""A killed `up`, run again, ends where it would have ended."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from kubernetes import client

from tests.sandbox.project import QUICK, Project

pytestmark = pytest.mark.control_plane


@pytest.mark.parametrize("resources", [3, 8, 14], ids="killed with {} resources in the state".format)
def test_a_killed_up_converges_when_it_is_run_again(project: Project, resources: int) -> None:
    run = subprocess.Popen(
        project.command("up"), cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=QUICK
    )
    until = time.monotonic() + 120
    while len(project.state()) < resources:
        assert run.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until, "it made no progress"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=10)
    assert len(project.state()) >= resources, "what was done is on record"

    project.run("up")
    (workload,) = [each for each in project.run("status")["workloads"] if each["name"] != "edge"]
    assert workload["ready"] == 2
    core = client.CoreV1Api(project.api())
    assert len(core.list_namespaced_secret("vllm").items) == 1, "an interrupted creation was made twice"
    assert set(project.run("up")["changes"]) == {"same"}
    project.run("destroy")
    assert project.processes() == []
