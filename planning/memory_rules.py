"""The rules by which one vLLM version divides a GPU's memory, from `presets/engines/vllm-<version>/memory.yaml`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from planning import catalogue
from planning.weights import MIB, Allocator


class LayoutError(Exception):
    """A layout or engine option that cannot work; `key` is the setting to change (without the project's namespace)."""

    def __init__(self, *, key: str, value: object, limit: str, remedy: str) -> None:
        self.key, self.value, self.limit, self.remedy = key, value, limit, remedy
        super().__init__(f"{key} = {value}: {limit}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class Constants:
    """One engine version's numbers; units and sources are in its `memory.yaml`."""

    utilization: float
    kernels: Mapping[str, Mapping[str, Any]]
    latent_multiple: int  # tokens
    concurrent_batches: int  # beside the pipeline's own
    state_blocks: int
    checkpoints: bool  # a prefill keeps one state more
    chunks_apart: bool  # chunked layers keep only their chunk; else all windows are charged as whole attention
    null_blocks: int
    tokens_by_concurrency: bool
    vocabulary_multiple: int
    multimodal_rope: int
    allocator: Allocator
    format_error: Mapping[str, float]  # share of the weights by trust
    context_gib: float
    sampler_per_logit: float
    sampler_per_hidden: float
    penalty_per_logit: float
    experts_error: float  # GiB
    indexer_bytes: float  # per token of context
    encoder_gib: float
    encoder_error: float
    graphs: Mapping[str, Mapping[str, Any]]
    cold_compile_gib: float
    scheduler: Sequence[Mapping[str, Any]]
    non_torch: Mapping[str, Mapping[int, Mapping[str, Any]]]
    activation_trust: str


@cache
def constants(version: str) -> Constants:
    """The constants of a vLLM version: a folder's own, or its rules for the versions before it.

    Raises LayoutError for a version that is newer than every folder, older than its rules, or no version.
    """
    asked = version_key(version)
    covered = [known for known in catalogue.engine_versions() if asked <= version_key(known)]
    data = catalogue.engine_memory(covered[0]) if covered else {}
    if not data or asked < version_key(data["oldest"]):
        raise LayoutError(
            key="vllm-version",
            value=version,
            limit=f"the memory of vLLM is known up to {catalogue.engine_versions()[-1]}, and not of every old version",
            remedy=f"use one of {', '.join(catalogue.engine_versions())}, or make engine-contract VERSION={version}",
        )
    changed: dict[str, Any] = {}
    for change in data["changes"]:  # newest first, so that the oldest rule that applies wins
        if asked < version_key(change["before"]):
            changed |= change

    def value(key: str) -> Any:
        return changed.get(key, data[key]["value"])

    allocator = data["allocator"]
    return Constants(
        utilization=value("gpu-memory-utilization"),
        kernels=data["block-size"]["kernels"],
        latent_multiple=data["block-size"]["latent-multiple"],
        concurrent_batches=value("concurrent-batches"),
        state_blocks=value("state-blocks"),
        checkpoints=value("state-checkpoints"),
        chunks_apart=value("chunks-apart"),
        null_blocks=value("null-blocks"),
        tokens_by_concurrency=value("tokens-by-concurrency"),
        vocabulary_multiple=value("vocabulary-multiple"),
        multimodal_rope=value("multimodal-rope"),
        allocator=Allocator(
            from_bytes=allocator["from-mib"] * MIB,
            multiple=allocator["multiple-mib"] * MIB,
            at_most=allocator["at-most-mib"] * MIB,
        ),
        format_error=data["weight-formats"]["error"],
        context_gib=value("context-gib"),
        sampler_per_logit=value("sampler-bytes-per-logit"),
        sampler_per_hidden=value("sampler-bytes-per-hidden"),
        penalty_per_logit=value("penalty-bytes-per-logit"),
        experts_error=data["experts-activation"]["error"],
        indexer_bytes=value("indexer-bytes-per-token"),
        encoder_gib=value("encoder-gib"),
        encoder_error=data["encoder-gib"]["error"],
        graphs=value("cuda-graph-gib"),
        cold_compile_gib=value("cold-compile-gib"),
        scheduler=data["scheduler"]["classes"],
        non_torch=data["non-torch-gib"],
        activation_trust=data["sampler-bytes-per-logit"]["trust"],
    )


def version_key(text: str) -> tuple[int, int, int]:
    """Comparable; what is no version compares as newer than all."""
    match = re.match(r"v?(\d+)(?:\.(\d+)(?:\.(\d+))?)?", text)
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)) if match else (sys.maxsize, 0, 0)
