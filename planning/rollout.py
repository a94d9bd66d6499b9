"""How an update replaces replicas, and what it and a node drain cost the people served."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planning.parallelism import Layout
from planning.placement import Place, Way
from planning.startup import MARGIN, StartupBudget
from planning.words import whole_minutes

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
    min_available_during_update: int  # replicas that serve at any moment
    min_available_during_drain: int
    drain_limit_seconds: int  # no drain of a node waits longer for this model, its replicas being sound
    update_outage_minutes: int  # 0: at least one replica keeps serving
    update_consequence: str
    drain_outage_minutes: int  # 0: replicas on other nodes keep serving
    drain_consequence: str


def longest_answer_seconds(max_answer_tokens: int, max_model_len: int) -> int:
    """How long an answer under way may still take; none is longer than the context."""
    return math.ceil(min(max_answer_tokens, max_model_len) / SLOW_TOKENS_PER_SECOND)


def termination_grace_seconds(answer_seconds: int) -> int:
    """The longest that a replica lives on after it was told to stop."""
    return PRE_STOP_SECONDS + answer_seconds + SLACK_SECONDS


def plan_rollout(
    layout: Layout, *, place: Place, nodes: int, startup: StartupBudget, answer_seconds: int
) -> RolloutPlan:
    """One replica at a time: a new one first where a place is free, an old one first where none is.

    `nodes` is the size of the pool, `place` what the model can count on there, `answer_seconds` how long the longest
    answer takes that an update lets finish.
    """
    replicas = layout.replicas
    grace = termination_grace_seconds(answer_seconds)
    serving_in_update = replicas if place.spare else replicas - 1
    serving_in_drain = replicas - place.down_in_drain
    return RolloutPlan(
        # On full nodes a surge pod would wait for GPUs that are never free.
        max_surge=1 if place.spare else 0,
        max_unavailable=0 if place.spare else 1,
        pdb_max_unavailable=place.down_in_drain,
        pre_stop_seconds=PRE_STOP_SECONDS,
        shutdown_timeout_seconds=answer_seconds,
        termination_grace_seconds=grace,
        min_ready_seconds=MIN_READY_SECONDS,
        min_available_during_update=serving_in_update,
        min_available_during_drain=serving_in_drain,
        drain_limit_seconds=_drain_limit(place, nodes, startup, grace),
        update_outage_minutes=0 if serving_in_update else whole_minutes(startup.restart_seconds),
        update_consequence=_update(layout, place, startup, answer_seconds),
        drain_outage_minutes=0 if serving_in_drain else whole_minutes(startup.total_seconds),
        drain_consequence=_drain(layout, place, nodes, startup),
    )


def _drain_limit(place: Place, nodes: int, startup: StartupBudget, grace: int) -> int:
    """Replicas of one node go in turns, as many at once as the budget allows, and each turn waits for the one before.

    The first waits too: AKS goes on to the next node when the one before is Ready, and by then the replicas of that
    one have only begun to start.
    """
    start = MARGIN * (startup.image_seconds + startup.restart_seconds) + MIN_READY_SECONDS
    turns = -(-place.on_one_node // place.down_in_drain)
    return turns * grace + (turns if nodes > 1 else turns - 1) * start


def _update(layout: Layout, place: Place, startup: StartupBudget, answer_seconds: int) -> str:
    restart = whole_minutes(startup.restart_seconds)
    each = whole_minutes(PRE_STOP_SECONDS + answer_seconds + startup.restart_seconds + MIN_READY_SECONDS)
    in_all = f"up to {each * layout.replicas} minutes in all."
    if place.spare:
        keeps = {1: "the only replica keeps", 2: "both replicas keep"}.get(
            layout.replicas, f"all {layout.replicas} replicas keep"
        )
        return f"A new replica starts on free GPUs before an old one stops: {keeps} serving; {in_all}"
    if layout.replicas > 1:
        return f"One replica at a time is replaced; {_count(layout.replicas - 1)} serving all the while; {in_all}"
    return (
        f"An update is an outage of about {restart} minutes, and up to {whole_minutes(answer_seconds)} more while the "
        "last answers finish: the only replica stops before the new one starts."
    )


def _drain(layout: Layout, place: Place, nodes: int, startup: StartupBudget) -> str:
    down, serving = place.down_in_drain, layout.replicas - place.down_in_drain
    if serving:
        together = "one replica" if down == 1 else f"up to {down} replicas"
        return f"A node drain takes {together} at a time; {_count(serving)} serving on other nodes."
    outage = f"an outage of about {whole_minutes(startup.total_seconds)} minutes, one start-up on a new node. "
    outage += "The disruption budget allows it, or no node could ever be updated."
    if place.way is Way.LARGEST_FIRST and nodes > 1:
        return f"A node drain may take every replica along, as larger models then come for their GPUs: {outage}"
    replicas = "the only replica" if layout.replicas == 1 else "every replica"
    if nodes > 1 and layout.replicas > 1:
        return f"A node drain may take every replica along, where they stand on one node: {outage}"
    return f"Draining the node takes {replicas} along: {outage}"


def _count(replicas: int) -> str:
    return "one replica keeps" if replicas == 1 else f"{replicas} replicas keep"
