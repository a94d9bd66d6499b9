"""The benchmark's Job through a real API server: made, its figures read back as a stack's output, and gone again.

Nothing is measured here: pods are simulated, so the test puts vLLM's figures where the Job's container would.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from gitops import benchmark
from gitops.tools import Sandbox
from tests.sandbox.project import Project

pytestmark = pytest.mark.control_plane
SETTING = ("--set", "benchmark=true")


def figures(plan: Any) -> dict[str, float]:
    """What vLLM's benchmark would say of a stack that does as predicted."""
    return {"completed": plan.requests, **{name: expected for name, (_, expected, _) in plan.predicted.items()}}


def test_figures_become_a_stacks_output_and_the_next_update_takes_the_job_away(project: Project) -> None:
    made = project.run("up", *SETTING)
    job = next(row for row in made["resources"] if row["urn"].endswith("::benchmark-model"))
    assert job["op"] == "create"
    before = made["outputs"]["benchmarks"]["model"]
    assert before["measured"] is None
    assert set(before["predicted"]) == {"mean_tpot_ms", "median_ttft_ms", "output_throughput"}

    (plan,) = benchmark.planned("sandbox").benchmarks
    core, namespace = client.CoreV1Api(project.api()), "vllm"
    (pod,) = core.list_namespaced_pod(namespace, label_selector=f"batch.kubernetes.io/job-name={plan.job}").items
    ended = {"exitCode": 0, "message": json.dumps(figures(plan))}
    status = {
        "name": "benchmark",
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": ended},
    }
    name = client.ApiClient().sanitize_for_serialization(pod)["metadata"]["name"]
    core.patch_namespaced_pod_status(name, namespace, {"status": {"containerStatuses": [status]}})

    tool = Sandbox("sandbox", project.folder, project.folder)
    said: list[str] = []
    (outcome,) = benchmark.measure(tool, benchmark.planned("sandbox"), said.append).values()
    assert outcome["ratio"] == {"mean_tpot_ms": 1.0, "median_ttft_ms": 1.0, "output_throughput": 1.0}
    shown = project.run("status")["outputs"]["benchmarks"]["model"]
    assert shown["measured"]["completed"] == plan.requests
    assert shown["ratio"] == outcome["ratio"]

    after = project.run("up")
    gone = {row["urn"].rsplit("::", 1)[1] for row in after["resources"] if row["op"] == "delete"}
    assert {"benchmark-model", "benchmark-program", "network-benchmark", "network-benchmark-tokenizer"} <= gone
    assert "benchmarks" not in after["outputs"]
    project.run("destroy")
