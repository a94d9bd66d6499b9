"""The benchmark's Job as it is rendered, against real engines behind the real edge: what it sends, leaves and means.

The model is tiny and there is no GPU: nothing here says how fast anything is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from planning.benchmark import KEY_VARIABLE, METRICS, outcome
from sandbox.engine import Recording
from tests.components.harness import CONFIG_MAP, JOB, recorded_preview
from tests.engine import environment
from tests.serving import on_cpu
from tests.serving.cluster import KEY, Cluster
from tests.serving.container import start

pytestmark = pytest.mark.engine

WORKLOAD = {"input-tokens": 48, "output-tokens": 8, "users": 2}
SECONDS = 600


@pytest.fixture(scope="module")
def rendered() -> Recording:
    keys = {"load-test": {"sha256": hashlib.sha256(KEY.encode()).hexdigest()}}
    return recorded_preview(edge={"keys": keys}, workload=WORKLOAD, benchmark=True, benchmark_key=KEY)


def run(rendered: Recording, cluster: Cluster, folder: Path, key: str) -> tuple[int, str, str]:
    """Exit code, last words and log of the Job's container; the edge's name stands for one of its pods."""
    pod = rendered.one(JOB, "benchmark-model").inputs["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    address, port = cluster.edges[0]
    words = [f"http://{address}:{port}" if word.startswith("http://edge.") else word for word in container["command"]]
    last_words = folder / "last-words"
    last_words.touch()
    volumes = {name: folder / name for name in ("scratch", "benchmark")}
    for made in volumes.values():
        made.mkdir()
    program = rendered.one(CONFIG_MAP, "benchmark-program").inputs["data"]
    for name, text in program.items():
        (volumes["benchmark"] / name).write_text(text)
    place = environment.make()
    here: Mapping[str, Any] = {
        **container,
        "command": words,
        # As the kubelet does with the termination message's path.
        "volumeMounts": [*container["volumeMounts"], {"name": "last-words", "mountPath": "/dev/termination-log"}],
    }
    env = {each["name"]: each.get("value", "") for each in container["env"]} | {KEY_VARIABLE: key}
    log = folder / "log"
    running = start(
        pod,
        here,
        image=on_cpu.image(place, folder / "image"),
        env=env,
        volumes={**volumes, "weights": on_cpu.tiny_model(place, 16384), "last-words": last_words},
        log=log,
    )
    return running.process.wait(SECONDS), last_words.read_text(), log.read_text()


def test_the_rendered_job_measures_the_served_model_through_the_edge(
    cluster: Cluster, rendered: Recording, tmp_path: Path
) -> None:
    cluster.wait_known()
    code, last_words, log = run(rendered, cluster, tmp_path, KEY)
    assert code == 0, log[-3000:]
    assert len(last_words.encode()) <= 4096, "Kubernetes keeps no more"
    words = rendered.one(JOB, "benchmark-model").inputs["spec"]["template"]["spec"]["containers"][0]["command"]
    requests = int(words[words.index("--num-prompts") + 1])
    predicted = dict.fromkeys(METRICS, (0.5, 1.0, 2.0))  # in place of an H100's
    found = outcome(predicted, requests, last_words)
    assert found["wrong"] == []
    assert found["measured"]["completed"] == requests
    assert set(found["ratio"]) == set(METRICS)
    assert KEY not in log + last_words
    asked = [line for line in cluster.edge_log() if line["key"] == "load-test"]
    assert len(asked) >= requests, "it went past the edge"


def test_with_a_wrong_key_there_is_a_reason_and_no_figure(
    cluster: Cluster, rendered: Recording, tmp_path: Path
) -> None:
    """vLLM's benchmark ends well, whatever became of its requests."""
    _, last_words, log = run(rendered, cluster, tmp_path, "sk-not-a-key")
    found = outcome(dict.fromkeys(METRICS, (0.5, 1.0, 2.0)), 16, last_words)
    assert found["ratio"] == {}, log[-3000:]
    assert "16 of 16 requests failed" in found["wrong"][0]
