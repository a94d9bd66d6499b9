"""How an update replaces replicas, and what it and a node drain cost the people served."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planning.parallelism import Layout
from planning.startup import StartupBudget

#: Seconds for which AKS' CoreDNS may go on answering with a replica that has left the Service: `ttl 30` and `cache 30`,
#: which its users cannot change (Azure/AKS#3661).
DNS_SECONDS = 30
#: Seconds between leaving the Service and SIGTERM: the edge must have heard of it, and vLLM answers 500 afterwards.
#: With 20, hundreds of requests were lost in an update (tests/serving).
PRE_STOP_SECONDS = DNS_SECONDS + 10
#: Tokens a second of one busy request, at the low end, for the longest answer that may still finish.
SLOW_TOKENS_PER_SECOND = 30
#: Seconds for vLLM to end its workers after the last answer; the kubelet kills what takes longer.
SLACK_SECONDS = 40
#: Seconds a replica must stay ready before the next one goes.
MIN_READY_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """Deployment strategy, disruption budget, drain times and their consequence in words."""

    max_surge: int
    max_unavailable: int
    pdb_max_unavailable: int
    pre_stop_seconds: int  # the endpoint leaves the Service before vLLM sees SIGTERM
    shutdown_timeout_seconds: int  # --shutdown-timeout: the longest answer may finish
    termination_grace_seconds: int  # pre_stop + shutdown_timeout + slack
    min_ready_seconds: int
    update_outage_minutes: int  # 0: at least one replica keeps serving
    update_consequence: str
    drain_outage_minutes: int  # 0: replicas on other nodes keep serving
    drain_consequence: str


def termination_grace_seconds(max_answer_tokens: int) -> int:
    """The longest that a replica lives on after it was told to stop."""
    return PRE_STOP_SECONDS + math.ceil(max_answer_tokens / SLOW_TOKENS_PER_SECOND) + SLACK_SECONDS


def plan_rollout(layout: Layout, *, nodes: int, startup: StartupBudget, max_answer_tokens: int) -> RolloutPlan:
    """One replica at a time, old before new: on full nodes a surge pod would wait for GPUs that are never free.

    `nodes` is the size of the pool; `max_answer_tokens` bounds the longest answer that an update lets finish.
    """
    shutdown = math.ceil(max_answer_tokens / SLOW_TOKENS_PER_SECOND)
    # A pod evicted from a full pool has nowhere to go until its node is back, and counts against the budget till then:
    # whatever the other nodes cannot hold must be allowed to be down, or the drain stops there for ever.
    homeless = layout.replicas - (nodes - 1) * layout.replicas_per_node
    apart = layout.replicas > 1 and homeless < layout.replicas
    restart = _minutes(startup.restart_seconds)
    each = _minutes(PRE_STOP_SECONDS + shutdown + startup.restart_seconds + MIN_READY_SECONDS)
    if layout.replicas > 1:
        outage = 0
        update = (
            f"one replica at a time is replaced; {_count(layout.replicas - 1)} serving all the while; up to "
            f"{each * layout.replicas} minutes in all."
        )
    else:
        outage = restart
        update = (
            f"An update is an outage of about {restart} minutes, and up to {_minutes(shutdown)} more while the last "
            "answers finish: the only replica stops before the new one starts."
        )
    if apart:
        drain_outage = 0
        together = "one replica" if homeless <= 1 else f"up to {homeless} replicas"
        drain = f"a node drain takes {together} at a time; those on other nodes keep serving."
    else:
        drain_outage = _minutes(startup.total_seconds)
        replicas = "the only replica" if layout.replicas == 1 else "every replica"
        drain = (
            f"Draining the node takes {replicas} along: an outage of about {drain_outage} minutes, one start-up on a "
            "new node. The disruption budget allows it, or no node could ever be updated."
        )
    return RolloutPlan(
        max_surge=0,
        max_unavailable=1,
        pdb_max_unavailable=max(1, homeless),
        pre_stop_seconds=PRE_STOP_SECONDS,
        shutdown_timeout_seconds=shutdown,
        termination_grace_seconds=termination_grace_seconds(max_answer_tokens),
        min_ready_seconds=MIN_READY_SECONDS,
        update_outage_minutes=outage,
        update_consequence=update[0].upper() + update[1:],
        drain_outage_minutes=drain_outage,
        drain_consequence=drain[0].upper() + drain[1:],
    )


def _minutes(seconds: int) -> int:
    return math.ceil(seconds / 60)


def _count(replicas: int) -> str:
    return "one replica keeps" if replicas == 1 else f"{replicas} replicas keep"
