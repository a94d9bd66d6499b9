"""Weights in blob storage, on a real API server: one upload for each commit, and replicas only behind it."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client

from tests.sandbox.project import Project

pytestmark = pytest.mark.control_plane

ONE, OTHER = "a" * 40, "b" * 40


def up(project: Project, commit: str) -> dict[str, str]:
    """Deploy this commit; type -> operation of what was not the same."""
    done: dict[str, Any] = project.run("up", "--set", "weights.source=azure-blob", "--set", f"revision={commit}")
    return {each["type"].rpartition(":")[2]: each["op"] for each in done["resources"] if each["op"] != "same"}


def uploads(project: Project) -> list[Any]:
    return client.BatchV1Api(project.api()).list_namespaced_job("vllm").items


def test_a_commit_is_uploaded_once_and_another_one_before_its_replicas_start(project: Project) -> None:
    assert "Job" in up(project, ONE)
    (first,) = uploads(project)
    assert ONE[:8] in first.metadata.name
    assert first.status.succeeded == 1
    assert up(project, ONE) == {}, "an upload that is done is not made again"
    assert up(project, OTHER) == {"Job": "replace", "Deployment": "update"}
    (second,) = uploads(project)
    assert OTHER[:8] in second.metadata.name
    replicas: list[Any] = client.AppsV1Api(project.api()).list_namespaced_replica_set("vllm").items
    newest = max(each.metadata.creation_timestamp for each in replicas)
    assert second.status.completion_time <= newest, "replicas of a commit that was not there yet"
