"""The edge's settings: what is refused, what is only told, and what is written into its files."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import Any

import pytest

from planning.findings import InvalidStack, Severity
from planning.plan import StackPlan, read_and_decide
from planning.stack_file import from_pulumi
from tests.edge import certificates

HASH, OTHER_HASH = (hashlib.sha256(key).hexdigest() for key in (b"one", b"other"))
CLEAR = "sk-a-key-that-somebody-wrote-in-clear"
KEYS = {"team-a": {"sha256": HASH}}
TODAY = datetime.date(2026, 11, 26)


def decided(edge: Any, today: datetime.date | None = None, **settings: Any) -> StackPlan:
    bag = {"azure-native:location": "eastus", "aks-vllm:preset": "qwen3-8b", "aks-vllm:edge": json.dumps(edge)}
    bag |= {f"aks-vllm:{key}": value for key, value in settings.items()}
    return read_and_decide(from_pulumi(bag, [], "prod"), today)


def refusals(edge: Any) -> list[str]:
    with pytest.raises(InvalidStack) as refused:
        decided(edge)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        ({"access": "public"}, ["edge.tls-secret = nothing: is required", "edge.keys = {}: is required"]),
        ({"access": "public", "keys": KEYS}, ["edge.tls-secret = nothing: is required with access: public"]),
        ({"access": "public", "tls-secret": "t"}, ["edge.keys = {}: is required with access: public"]),
        (
            {"keys": {"a": {"sha256": HASH}, "b": {"sha256": HASH}}},
            ["b.sha256 = (hidden): is the hash of a's"],
        ),
        ({"keys": {"a": {"sha256": CLEAR}}}, ["edge.keys.a.sha256 = (hidden): must be the SHA-256", "sha256sum"]),
        ({"keys": {"a": CLEAR}}, ["edge.keys.a = (hidden): must be a map with sha256"]),
        ({"keys": {CLEAR.upper(): KEYS["team-a"]}}, ["edge.keys = (hidden): must be a name"]),
        ({"keys": {"a": {"sha256": HASH, "key": CLEAR}}}, ["edge.keys.a = (hidden): takes sha256 and"]),
        ({"keys": {"a": {"sha256": HASH, "requests-per-minute": 0}}}, ["requests-per-minute = 0: must be at least 1"]),
        ({"paths": ["/invocations"]}, ["edge.paths = /invocations: is not a route that can be opened", "/tokenize"]),
        ({"paths": []}, ["edge.paths = []: opens no route"]),
        ({"max-body-mib": 0}, ["edge.max-body-mib = 0: must be at least 1"]),
        ({"acess": "public"}, ["edge.acess = public: is not a key", "did you mean access?"]),
        ({"host": "not a host"}, ["edge.host = not a host: "]),
        (
            {"tls-secret": "t", "host": "a.example.com", "certificate": "x"},
            ["certificate = (PEM): is not an X.509"],
        ),
    ],
    ids=str,
)
def test_what_cannot_stand_is_refused_with_its_remedy(edge: Any, said: list[str]) -> None:
    told = refusals(edge)
    text = "\n".join(told)
    assert not [words for words in said if words not in text], text
    assert CLEAR.lower() not in text.lower(), "a message is where keys leak into build logs"
    assert all("stacks/Pulumi.prod.yaml" in line for line in told)


def test_everything_is_told_at_once() -> None:
    edge = {"access": "public", "paths": ["/load"], "max-body-mib": 0, "keys": {"a": {"sha256": CLEAR}}}
    keys = [line.partition(" = ")[0].removeprefix("aks-vllm:edge.") for line in refusals(edge)]
    assert sorted(keys) == ["keys.a.sha256", "max-body-mib", "paths", "tls-secret"], "no more, and none of them later"


def test_a_certificate_is_compared_with_the_name_that_clients_use() -> None:
    certificate, key = certificates.make("*.example.com")
    given = {"tls-secret": "edge-tls", "certificate": certificate}
    assert decided({**given, "host": "llm.example.com"}).edge.host == "llm.example.com"
    for host in ("example.com", "a.b.example.com", "llm.example.org"):
        (line,) = refusals({**given, "host": host})
        assert f"edge.host = {host}: is not a name of the certificate, which is for *.example.com" in line
    assert "edge.host = nothing: is required" in refusals(given)[0]
    (line,) = refusals({**given, "host": "llm.example.com", "certificate": certificate + key})
    assert "holds a private key" in line and "BEGIN" not in line
    assert "edge.tls-secret = nothing" in refusals({"host": "llm.example.com", "certificate": certificate})[0]


@pytest.mark.parametrize(("days", "said"), [(90, None), (10, "ends in"), (-3, "ended")])
def test_a_certificate_that_ends_soon_is_told(days: int, said: str | None) -> None:
    certificate, _ = certificates.make("llm.example.com", days=days)
    today = datetime.datetime.now(datetime.UTC).date()
    edge = {"tls-secret": "edge-tls", "certificate": certificate, "host": "llm.example.com"}
    told = [str(finding) for finding in decided(edge, today).findings if "certificate" in finding.message]
    assert len(told) == (1 if said else 0)
    assert (said or "") in "".join(told)


@pytest.mark.parametrize(("environment", "severity"), [("production", "warning"), ("development", "note")])
def test_who_may_use_it_without_a_key_is_told(environment: str, severity: str) -> None:
    told = {f.message: f.severity for f in decided({}, environment=environment).findings}
    open_to = [kind for message, kind in told.items() if "No API key is asked for" in message]
    assert open_to == [Severity(severity)]
    closed = decided({"keys": KEYS, "tls-secret": "edge-tls"}, environment=environment)
    assert not [f for f in closed.findings if "API key" in f.message]


def test_the_keys_are_in_the_secret_alone_and_only_as_hashes() -> None:
    edge = decided({"keys": {"a": {"sha256": HASH, "requests-per-minute": 5}, "b": {"sha256": OTHER_HASH}}}).edge
    assert edge.keys == f"{HASH} a\n{OTHER_HASH} b\n"
    assert not [name for name, text in edge.files.items() if HASH in text]
    assert edge.files["limits.map"] == "a 3\n", "half for each pod, rounded up"


def test_two_edges_together_give_a_replica_no_more_than_it_takes() -> None:
    for options in ({}, {"max-num-seqs": 9}):
        plan = decided({}, vllm=json.dumps(options))
        (model,) = plan.models
        assert plan.edge.replicas * plan.edge.concurrency["model"] <= model.memory.max_num_seqs
        assert plan.edge.concurrency["model"] >= 1
