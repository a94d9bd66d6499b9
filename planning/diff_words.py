"""A plan as a document, and what comparisons of two read out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planning.words import counted

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A stack at one moment. With neither plan nor problems there is no such stack."""

    label: str  # "main (1a2b3c4)"
    config: Mapping[str, Any]  # the stack file's, full keys; the value of a secret is compared and never shown
    plan: Document | None = None  # the report's JSON
    problems: tuple[str, ...] = ()  # why there is no plan

    @property
    def exists(self) -> bool:
        """Whether there is such a stack, deployable or not."""
        return self.plan is not None or bool(self.problems)


KUBECONFIG = "aks-vllm:kubeconfig"


def whose_cluster(plan: Document) -> str:
    """The cluster that is not the stack's, in words; "" where it is the stack's own."""
    cluster = plan["cluster"]
    if "has_resource_group" not in cluster:
        return ""
    return f"cluster {cluster['id']}" if cluster["id"] else f"the cluster of {KUBECONFIG}"


def in_vault(plan: Document, what: str) -> str:
    """Where a vault has it (`token`, `certificate`), in words; "" where none has."""
    vault = plan.get("key_vault") or {}
    held = vault.get(what) or (vault if what == "token" and "secret" in vault else None)  # as plans were before
    return f"{held['secret']} of vault {vault['id'].rpartition('/')[2]}" if held else ""


def by_name(items: Iterable[Document]) -> dict[str, Document]:
    """Documents that have a name, by it."""
    return {item["name"]: item for item in items}


def at_path(value: Any, path: str) -> Any:
    """The value at `a.b.c`; None where there is none."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def at_once_in_all(model: Document) -> float:
    """Requests of full length that all replicas of a model hold at once."""
    return model["memory"]["max_concurrency"] * model["layout"]["replicas"]


def unused_gib(model: Document) -> float:
    """Of each GPU, outside of vLLM's share."""
    return model["derived"]["unused_gib"]


def pool_text(pool: Document) -> str:
    """Name, nodes and their size."""
    return f"pool {pool['name']} ({nodes_text(pool)} of {pool['vm_size']})"


def nodes_text(pool: Document) -> str:
    """How many, and between which numbers."""
    grows = f", {pool['min_count']} to {pool['max_count']} by the autoscaler" if pool["autoscale"] else ""
    return f"{counted(pool['count'], 'node')}{grows}"


def percent_change(old: float, new: float) -> str:
    """With its sign."""
    return f"{(new - old) / old:+.0%}" if old else "from nothing"


def lower_first(text: str) -> str:
    """A sentence behind a colon."""
    return text[:1].lower() + text[1:]
