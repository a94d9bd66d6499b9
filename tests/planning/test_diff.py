"""What a reviewer is told about a change: typical changes, each with what the comment must say."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planning import diff, diff_page, revision
from planning.__main__ import main
from planning.diff import Kind, StackDiff

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "thisIsNotARealToken" * 2


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a stack file, what must be said about it, and what may not be."""

    id: str
    before: str
    after: str
    says: tuple[str, ...]
    kind: Kind | None  # of the worst consequence; None: nothing happens
    outage: int | None = 0  # minutes; None: some
    never: tuple[str, ...] = ()


PROD = """
azure-native:location: eastus
environment: production
preset: llama-3.3-70b-instruct
max-model-len: 16384
vm-size: Standard_ND96isr_H100_v5
weights: {source: hugging-face}
hf-token: {secure: v1:one}
"""
DEV = """
azure-native:location: eastus
environment: development
preset: qwen3-8b
vm-size: Standard_NC40ads_H100_v5
"""
SEVERAL = """
azure-native:location: eastus
environment: development
models: {chat: {preset: qwen3-8b, vm-size: Standard_ND96isr_H100_v5, vllm: {tensor-parallel-size: 4}, replicas: 1}}
gpu-nodes: {min: 1, max: 1}
"""


def with_(base: str, **settings: Any) -> str:
    """The stack with other settings; None takes one away."""
    lines = [line for line in base.strip().splitlines() if line.split(":")[0].replace("-", "_") not in settings]
    lines = [line for line in lines if not (line.startswith("azure-native") and "location" in settings)]
    if "location" in settings:
        lines.append(f"azure-native:location: {settings.pop('location')}")
    chosen = {key: value for key, value in settings.items() if value is not None}
    return "\n".join([*lines, *(f"{key.replace('_', '-')}: {json.dumps(value)}" for key, value in chosen.items())])


CODE = "{preset: qwen3-8b, vm-size: Standard_ND96isr_H100_v5, vllm: {tensor-parallel-size: 4}, replicas: 1}"
BOTH = SEVERAL.replace("models: {", f"models: {{code: {CODE}, ")
TP8 = with_(PROD, vllm={"tensor-parallel-size": 8})

PLATFORM = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
    "/Microsoft.ContainerService/managedClusters/platform"
)
GUEST = with_(PROD, existing_cluster={"id": PLATFORM})
KEYED = with_(PROD, kubeconfig={"secure": "v1:one"})

CHANGES = (
    Change(
        id="from a cluster of its own to an existing one",
        before=PROD,
        after=GUEST,
        kind=Kind.CLUSTER,
        outage=None,
        says=(
            "The stack's own cluster is deleted with everything in it, its network and its resource group too",
            f"the models are made in cluster {PLATFORM}: an outage of all models",
            "Pulumi refuses it while the cluster is protected (`aks-vllm:protect`).",
        ),
        never=("Nothing changes",),
    ),
    Change(
        id="from an existing cluster to one of its own",
        before=GUEST,
        after=PROD,
        kind=Kind.CLUSTER,
        outage=None,
        says=("is deleted, and made in a cluster of its own; the old cluster itself stays: an outage of all models",),
        never=("Pulumi refuses it",),
    ),
    Change(
        id="from one existing cluster to another",
        before=GUEST,
        after=KEYED,
        kind=Kind.CLUSTER,
        outage=None,
        says=("made in the cluster of aks-vllm:kubeconfig; the old cluster itself stays: an outage of all models",),
    ),
    Change(
        id="another kubeconfig",
        before=KEYED,
        after=with_(PROD, kubeconfig={"secure": "v1:two"}),
        kind=Kind.IN_PLACE,
        says=("where it names another API server, everything is made there",),
        never=("v1:two",),
    ),
    Change(
        id="another namespace",
        before=GUEST,
        after=with_(PROD, existing_cluster={"id": PLATFORM, "namespace": "chat"}),
        kind=Kind.NODES,
        outage=None,
        says=("Namespace vllm is deleted with everything in it, and chat made with GPU nodes of its own: an outage",),
    ),
    Change(
        id="a longer context",
        before=PROD,
        after=with_(PROD, max_model_len=65536),
        kind=Kind.ROLLING,
        says=(
            "model: rolling update, one replica keeps serving all the while",
            "requests may be up to 65,536 tokens long instead of 16,384",
            "14.1 requests of full length at once in all replicas instead of 56.4 (-75%)",
            "- --max-model-len 16384",
            "+ --max-model-len 65536",
        ),
        never=("KV cache gained", "KV cache lost", "an hour more"),
    ),
    Change(
        id="a shorter context",
        before=PROD,
        after=with_(PROD, max_model_len=8192),
        kind=Kind.ROLLING,
        says=("requests longer than 8,192 tokens are refused; 16,384 was the limit",),
    ),
    Change(
        id="a context that does not fit",
        before=PROD,
        after=with_(PROD, max_model_len=200000),
        kind=None,
        says=("The plan does not stand: 1 problem. It cannot be deployed.", "max-model-len = 200000"),
        never=("Nothing changes",),
    ),
    Change(
        id="another commit, with weights in the storage account",
        before=with_(PROD, weights={"source": "azure-blob"}),
        after=with_(PROD, weights={"source": "azure-blob"}, revision="b" * 40),
        kind=Kind.ROLLING,
        says=("model: first its weights are uploaded to the storage account, about 13 minutes.",),
        never=("Nothing changes",),
    ),
    Change(
        id="weights from the storage account instead of Hugging Face",
        before=PROD,
        after=with_(PROD, weights={"source": "azure-blob"}),
        kind=Kind.ROLLING,
        says=("model: first its weights are uploaded to the storage account, about 13 minutes.",),
        never=("Nothing changes",),
    ),
    Change(
        id="the same commit, whose weights are in the storage account already",
        before=with_(PROD, weights={"source": "azure-blob"}),
        after=with_(PROD, weights={"source": "azure-blob"}, max_model_len=65536),
        kind=Kind.ROLLING,
        says=("model: rolling update, one replica keeps serving all the while",),
        never=("uploaded",),
    ),
    Change(
        id="a benchmark",
        before=PROD,
        after=with_(PROD, benchmark=True),
        kind=None,
        says=("model: a benchmark sends it 256 requests; all others share it with them.",),
        never=("Nothing changes", "benchmarks[0]"),
    ),
    Change(
        id="routes closed",
        before=with_(PROD, edge={"keys": {"a": {"sha256": "1" * 64}}}),
        after=with_(PROD, edge={"keys": {"a": {"sha256": "1" * 64}}, "paths": ["/v1/models", "/v1/responses"]}),
        kind=None,
        says=(
            "Requests to /v1/chat/completions, /v1/completions and /v1/embeddings are refused from then on.",
            "Exposure: /v1/responses can be called, too.",
        ),
        never=("Nothing changes",),
    ),
    Change(
        id="keys and limits",
        before=with_(PROD, edge={"keys": {"a": {"sha256": "1" * 64}, "b": {"sha256": "2" * 64}}}),
        after=with_(
            PROD,
            edge={
                "keys": {"a": {"sha256": "1" * 64, "requests-per-minute": 600}, "c": {"sha256": "3" * 64}},
                "max-body-mib": 8,
            },
        ),
        kind=None,
        says=(
            "Requests with the key of b are refused from then on.",
            "Exposure: c may use the models, too.",
            "Requests that a may make in a minute: 600 instead of any number.",
            "Requests may be up to 8 MiB large instead of 32.",
        ),
        never=("Nothing changes",),
    ),
    Change(
        id="from flat keys to the map of models",
        before=DEV,
        after=with_(DEV, preset=None, vm_size=None, models={"model": {"preset": "qwen3-8b"}}),
        kind=None,
        says=("model: clients must call /model/v1 instead of /v1, which is answered 404 from then on.",),
        never=("Nothing changes",),
    ),
    Change(
        id="a subnet with nodes in it",
        before=PROD,
        after=with_(PROD, network={"node-subnet-cidr": "10.224.16.0/20"}),
        kind=Kind.IMPOSSIBLE,
        says=("No update can do this (node subnet cidr)", "Destroy the stack and deploy it again"),
        never=("Nothing changes",),
    ),
    Change(
        id="a plan that did not stand",
        before=with_(PROD, max_model_len=200000),
        after=PROD,
        kind=None,
        says=("The plan before the change did not stand (1 problem); now it does.", "2 replicas × 4 GPUs"),
    ),
    Change(
        id="TP 4 to 8",
        before=PROD,
        after=TP8,
        kind=Kind.OUTAGE,
        outage=19,
        says=(
            "model: the update stops serving for about 19 minutes",
            "862,320 tokens of KV cache gained in each replica (+187%)",
            "2 replicas × TP 4",
            "1 replica × TP 8",
            "Findings gained",
        ),
    ),
    Change(
        id="TP 8 to 4, and two replicas again",
        before=TP8,
        after=PROD,
        kind=Kind.STUCK,
        says=(
            "the update gets stuck: new replicas of 4 GPUs wait for GPUs that the old ones hold",
            "Make it two updates: the same change with replicas: 1 (an outage of about 19 minutes)",
        ),
    ),
    Change(
        id="more, smaller replicas on a full node",
        before=PROD,
        after=with_(PROD, vllm={"tensor-parallel-size": 2, "kv-cache-dtype": "fp8"}, replicas=4),
        kind=Kind.STUCK,
        says=("the update gets stuck: new replicas of 2 GPUs",),
    ),
    Change(
        id="a larger share of the GPU memory",
        before=PROD,
        after=with_(PROD, vllm={"gpu-memory-utilization": 0.98}),
        kind=Kind.ROLLING,
        says=(
            "62,256 tokens of KV cache gained in each replica (+13%)",
            "risk: only 1.6 GiB of each GPU stay outside vLLM's share instead of 6.3",
            "out-of-memory",
        ),
    ),
    Change(
        id="a smaller share of the GPU memory",
        before=PROD,
        after=with_(PROD, vllm={"gpu-memory-utilization": 0.85}),
        kind=Kind.ROLLING,
        says=("tokens of KV cache lost in each replica",),
        never=("risk",),
    ),
    Change(
        id="fp8 KV cache",
        before=PROD,
        after=with_(PROD, vllm={"kv-cache-dtype": "fp8"}),
        kind=Kind.ROLLING,
        says=("461,808 tokens of KV cache gained in each replica (+100%)", "+ --kv-cache-dtype fp8"),
    ),
    Change(
        id="a rotated token",
        before=PROD,
        after=with_(PROD, hf_token={"secure": "v1:two"}),
        kind=Kind.ROLLING,
        says=(
            "model: rolling update for the new Hugging Face token, one replica keeps serving",
            "aks-vllm:hf-token",
            "encrypted anew",
        ),
        never=("v1:one", "v1:two"),
    ),
    Change(
        id="a token that no model needs",
        before=with_(DEV, hf_token={"secure": "v1:one"}),
        after=with_(DEV, hf_token={"secure": "v1:two"}),
        kind=None,
        says=("Nothing changes for users.",),
        never=("v1:one", "v1:two", "rolling"),
    ),
    Change(
        id="another VM size, two replicas",
        before=PROD,
        after=with_(PROD, vm_size="Standard_ND96isr_H200_v5"),
        kind=Kind.NODES,
        says=(
            "GPU nodes are replaced: pool h200x8 (1 node of Standard_ND96isr_H200_v5) made first",
            "pool h100x8 (1 node of Standard_ND96isr_H100_v5) deleted last",
            "Quota must allow both at once",
            "2 replicas keep serving all the while, with the image to pull first",  # 4 of 8 GPUs are free
            "The price of the GPU nodes is not known any more: $98.32 → not known for eastus an hour.",
        ),
    ),
    Change(
        id="another VM size, one replica",
        before=DEV,
        after=with_(DEV, vm_size="Standard_NC80adis_H100_v5", replicas=1, vllm={"tensor-parallel-size": 2}),
        kind=Kind.NODES,
        outage=None,
        says=(
            "GPU nodes are replaced: pool h100nvlx2",
            "stops serving for about",
            "The GPU nodes cost $10.66 an hour more ($7,782 a month).",
        ),
    ),
    Change(
        id="another model",
        before=PROD,
        after=with_(PROD, preset="qwen3-235b-a22b-fp8", hf_token=None),
        kind=Kind.ROLLING,
        says=(
            "another model answers, qwen3-235b-a22b-fp8 instead of llama-3.3-70b-instruct",
            "clients must ask for qwen3-235b-a22b-fp8; requests for llama-3.3-70b-instruct are answered 404",
        ),
    ),
    Change(
        id="another name for clients",
        before=PROD,
        after=with_(PROD, vllm={"served-model-name": "chat"}),
        kind=Kind.ROLLING,
        says=("clients must ask for chat; requests for llama-3.3-70b-instruct are answered 404",),
    ),
    Change(
        id="a second replica on the same node",
        before=with_(PROD, replicas=1),
        after=PROD,
        kind=Kind.IN_PLACE,
        says=(
            "model: 1 → 2 replicas, in place",
            "56.4 requests of full length at once in all replicas instead of 28.2",
        ),
        never=("stops serving", "an hour more"),
    ),
    Change(
        id="a second node",
        before=PROD,
        after=with_(PROD, replicas=4),
        kind=Kind.IN_PLACE,
        says=(
            "model: 2 → 4 replicas, in place",
            "Pool h100x8 in place: 1 node → 2 nodes.",
            "The GPU nodes cost $98.32 an hour more ($71,774 a month).",
            "192 vCPUs of standardNDSH100v5Family",
        ),
    ),
    Change(
        id="a node less",
        before=with_(PROD, replicas=4),
        after=PROD,
        kind=Kind.NODES,
        says=(
            "1 node of pool h100x8 is drained and removed",
            "The GPU nodes cost $98.32 an hour less",
        ),
    ),
    Change(
        id="room for the autoscaler",
        before=PROD,
        after=with_(PROD, gpu_nodes={"min": 1, "max": 3}),
        kind=Kind.IN_PLACE,
        says=(
            "Nothing changes for users.",
            "Pool h100x8 in place: 1 node → 1 node, 1 to 3 by the autoscaler.",
            "288 vCPUs of standardNDSH100v5Family",
            "Findings gained",
        ),
    ),
    Change(
        id="a new Kubernetes",
        before=PROD,
        after=with_(PROD, kubernetes_version="1.37"),
        kind=Kind.NODES,
        outage=32,
        says=(
            "Kubernetes goes from 1.36 to 1.37",
            "every GPU node is drained and upgraded, one after the other. model: draining the node takes every replica",
        ),
    ),
    Change(
        id="another region",
        before=PROD,
        after=with_(PROD, location="westus"),
        kind=Kind.CLUSTER,
        outage=None,
        says=(
            "The cluster is replaced (location): an outage of all models",
            "Pulumi refuses it while the cluster is protected (`aks-vllm:protect`).",
            "The GPU nodes cost $29.50 an hour more",
        ),
    ),
    Change(
        id="protection off",
        before=PROD,
        after=with_(PROD, protect=False),
        kind=None,
        says=("Nothing changes for users.", "not protected"),
    ),
    Change(
        id="zones, which Azure cannot change on a pool",
        before=PROD,
        after=with_(PROD, gpu_nodes={"zones": ["1"]}),
        kind=Kind.NODES,
        outage=None,
        says=("GPU nodes are replaced (zones), the old ones first, as quota does not hold both: an outage of about",),
    ),
    Change(
        id="an API server for everybody",
        before=with_(PROD, environment="development", api_server_access="private"),
        after=with_(PROD, environment="development", api_server_access="public"),
        kind=None,
        says=("Exposure: the API server's access is public instead of private.",),
        never=("Nothing changes",),
    ),
    Change(
        id="tags",
        before=PROD,
        after=with_(PROD, tags={"team": "inference"}),
        kind=None,
        says=("Nothing changes for users.", "cluster.tags.team"),
    ),
    Change(
        id="the same defaults, written down",
        before=PROD,
        after=with_(PROD, replicas=2, kubernetes_version="1.36"),
        kind=None,
        says=("Nothing changes for users.", "aks-vllm:replicas"),
    ),
    Change(
        id="nothing",
        before=PROD,
        after=PROD,
        kind=None,
        says=("Nothing changes for users.",),
        never=("Settings that changed", "Findings gained", "Also different"),
    ),
    Change(
        id="longer answers",
        before=PROD,
        after=with_(PROD, max_answer_tokens=16384),
        kind=Kind.ROLLING,
        says=("Last answers get", "274 s", "547 s"),
    ),
    Change(
        id="a second model beside the first",
        before=SEVERAL,
        after=BOTH,
        kind=Kind.ROLLING,
        says=("code is new: a first answer about",),
        never=("stops serving",),
    ),
    Change(
        id="a second model that no longer fits the pool",
        before=SEVERAL,
        after=SEVERAL.replace(
            "models: {",
            "models: {code: {preset: llama-3.3-70b-instruct, vllm: {tensor-parallel-size: 8}, replicas: 1}, ",
        ),
        kind=None,
        says=("The plan does not stand", "need 2 nodes of Standard_ND96isr_H100_v5", "What runs is not touched."),
    ),
    Change(
        id="a model less",
        before=BOTH,
        after=SEVERAL,
        kind=Kind.OUTAGE,
        says=("code is removed, with its endpoint.",),
    ),
    Change(
        id="a model renamed on a full node",
        before=SEVERAL.replace("replicas: 1", "replicas: 2"),
        after=SEVERAL.replace("replicas: 1", "replicas: 2").replace("chat:", "talk:"),
        kind=Kind.STUCK,
        says=(
            "talk: the update gets stuck: new replicas of 4 GPUs wait for GPUs that chat holds until the end",
            "Remove chat in an update of its own first",
        ),
    ),
    Change(
        id="development to production",
        before=with_(PROD, environment="development"),
        after=PROD,
        kind=None,
        says=("access is private instead of public", "tier Free", "tier Standard", "Still to do before an update"),
    ),
)


def side(text: str, folder: Path) -> diff.Side:
    """A stack of these settings; keys without a namespace are the program's."""
    lines = [line if line.startswith("azure-native") else f"aks-vllm:{line}" for line in text.strip().splitlines()]
    folder.mkdir(exist_ok=True)
    (folder / "Pulumi.test.yaml").write_text("config:\n" + textwrap.indent("\n".join(lines), "  ") + "\n")
    return revision._side("test", folder, folder.name, ())


def compared(before: str, after: str, folder: Path) -> StackDiff:
    return diff.compare(side(before, folder / "before"), side(after, folder / "after"), "test")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_a_reviewer_is_told_what_the_change_means(change: Change, tmp_path: Path) -> None:
    found = compared(change.before, change.after, tmp_path)
    written = diff_page.as_markdown(found)
    for sentence in change.says:
        assert sentence in written
    for sentence in change.never:
        assert sentence not in written
    assert (found.consequences[0].kind if found.consequences else None) == change.kind, written
    if change.outage is None:
        assert found.outage_minutes > 0
    else:
        assert found.outage_minutes == change.outage


def test_there_are_twenty_changes_or_more() -> None:
    assert len(CHANGES) >= 20


def strings(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return {text for item in value.values() for text in strings(item)}
    if isinstance(value, list | tuple):
        return {text for item in value for text in strings(item)}
    return {value} if isinstance(value, str) else set()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_terminal_comment_and_json_say_the_same(change: Change, tmp_path: Path) -> None:
    found = compared(change.before, change.after, tmp_path)
    document = diff_page.as_json(found)
    shown = (
        strings({key: value for key, value in document.items() if key not in ("consequences", "stack")})
        - {"gained", "lost", "changed"}
        - {""}
    )
    text, markdown = diff_page.as_text(found), diff_page.as_markdown(found)
    for said in shown:
        assert said in text, "the terminal leaves it out"
        assert diff_page.escaped(said) in markdown or diff_page._cap(said) in markdown, "the comment leaves it out"


@pytest.mark.parametrize(
    "settings",
    [{"tags": {"a": "<img src=x> | @team [x](y) `z`"}}, {"vllm": {"served-model-name": "<b>|@everyone"}}],
    ids=["tag", "name"],
)
def test_what_somebody_wrote_is_shown_and_not_obeyed(settings: Mapping[str, Any], tmp_path: Path) -> None:
    written = diff_page.as_markdown(compared(PROD, with_(PROD, **settings), tmp_path))
    outside = [line for line in written.splitlines() if not line.startswith(("+ --", "- --"))]
    assert "<img" not in written and not [line for line in outside if "<b>" in line], "GitHub would draw it"
    assert not [line for line in outside if "@team" in line or "@everyone" in line], "GitHub would call people"


def test_a_token_in_clear_is_never_shown(tmp_path: Path) -> None:
    found = compared(PROD, with_(PROD, hf_token=TOKEN), tmp_path)
    for text in (diff_page.as_markdown(found), diff_page.as_text(found), json.dumps(diff_page.as_json(found))):
        assert TOKEN not in text
        assert "must be encrypted" in text


def test_a_field_that_nobody_has_written_a_line_for_is_shown_all_the_same(tmp_path: Path) -> None:
    old, new = side(PROD, tmp_path / "before"), side(PROD, tmp_path / "after")
    assert new.plan is not None
    plan = json.loads(json.dumps(new.plan))
    plan["lake"] = {"deep": True}
    plan["models"][0]["colour"] = "blue"
    found = diff.compare(old, diff.Side(label="after", config=new.config, plan=plan), "test")
    assert {line.what: line.after for line in found.other} == {"lake.deep": "true", "model.colour": "blue"}


# The command line, and git.

Run = Callable[..., str]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the rooms that plan, with one commit."""
    import shutil

    folder = tmp_path_factory.mktemp("repository")
    for room in revision.ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "-m", "before"]):
        name = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *name, *words], cwd=folder, check=True)
    return folder


def run(folder: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "planning", "diff", *words, "--format", "json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def replaced(file: Path, old: str, new: str) -> Callable[[], object]:
    """Change a file; what it returns puts it back."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return lambda: file.write_text(text)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "presets/images.yaml",
            "tag: v0.33.0\n    digest: null",
            f"tag: v0.33.0\n    digest: sha256:{'a' * 64}",
            "one replica keeps serving all the while, with the image to pull first; up to",
        ),
        (
            "presets/models/llama-3.3-70b-instruct.yaml",
            "revision: 6f6073b423013f6a7d4d9f39144961bfbfbc386b",
            f"revision: {'a' * 40}",
            "model: rolling update, one replica keeps serving all the while; up to",
        ),
        ("presets/vm-sizes.yaml", "eastus: 98.32", "eastus: 88.32", "The GPU nodes cost $10.00 an hour less"),
        (
            "planning/rollout.py",
            "MIN_READY_SECONDS = 10",
            "MIN_READY_SECONDS = 20",
            "Nothing changes for users.",
        ),
    ],
    ids=["image", "revision of the model", "price", "the planner itself"],
)
def test_presets_and_planner_are_those_of_the_revision(
    repository: Path, file: str, old: str, new: str, says: str
) -> None:
    restore = replaced(repository / file, old, new)
    try:
        found = run(repository, "--stack", "prod", "--base", "main")
    finally:
        restore()
    assert says in " ".join(found["verdict"])
    assert not found["settings"], "the stack file stayed the same"


def test_nothing_is_checked_out_and_the_revision_is_named(repository: Path) -> None:
    restore = replaced(repository / "stacks/Pulumi.prod.yaml", "16384", "32768")
    try:
        found = run(repository, "--stack", "prod", "--base", "HEAD", "--set", "max-model-len=65536")
        status = subprocess.run(
            ["git", "status", "--short"], cwd=repository, capture_output=True, text=True, check=True
        )
    finally:
        restore()
    assert found["settings"] == [{"what": "aks-vllm:max-model-len", "before": "16384", "after": "65536", "note": ""}]
    assert found["before"].startswith("HEAD (")
    changed = {line for line in status.stdout.splitlines() if "__pycache__" not in line}
    assert changed == {" M stacks/Pulumi.prod.yaml"}


def test_a_stack_that_is_new_and_one_that_is_gone(repository: Path) -> None:
    file = repository / "stacks/Pulumi.prod.yaml"
    new = file.with_name("Pulumi.new.yaml")
    new.write_text(file.read_text())
    gone = file.rename(file.with_suffix(".away"))
    try:
        assert run(repository, "--stack", "new", "--base", "main")["verdict"][0] == "The stack is new."
        assert "The stack file is gone." in run(repository, "--stack", "prod", "--base", "main")["verdict"][0]
    finally:
        new.unlink()
        gone.rename(file)


def test_another_file_is_compared_with_the_planner_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text((ROOT / "stacks/Pulumi.prod.yaml").read_text().replace("16384", "8192"))
    assert main(["diff", "--stack", "prod", "--base", str(file)]) == 0
    assert "requests may be up to 16,384 tokens long instead of 8,192" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stack", "prod", "--base", "no-such-branch"], "git knows no such revision"),
        (["--stack", "prod", "--base", "--output=x"], "--base"),
        (["--stack", "prdo", "--base", "stacks/schema.json"], "there is no such stack"),
        (["--stack", "prod"], "--base"),
    ],
    ids=["revision", "an option in its place", "stack", "no base"],
)
def test_what_cannot_be_compared_is_told_with_exit_code_two(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["diff", *words]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert not out
    assert not list(ROOT.glob("x"))
