"""How an update replaces replicas, and what it and a node drain cost the people served."""

from __future__ import annotations

from dataclasses import dataclass


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
