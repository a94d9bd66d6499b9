"""One start-up budget, from which every probe, deadline and timeout is derived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StartupBudget:
    """Seconds per stage as expected, and the limits derived from them (with their margin)."""

    node_seconds: int  # VM allocation, boot, join, GPU driver
    image_seconds: int
    weights_seconds: int  # download by the init container
    load_seconds: int  # disk to GPU
    compile_seconds: int
    graphs_seconds: int  # CUDA graph capture and the rest of engine initialisation
    total_seconds: int  # cold: a fresh node to the first answer
    restart_seconds: int  # the node is there with the image, weights are fetched again
    engine_ready_timeout_seconds: int  # VLLM_ENGINE_READY_TIMEOUT_S, and the start-up probe's whole length
    startup_probe_period_seconds: int
    startup_probe_failure_threshold: int
    progress_deadline_seconds: int  # Deployment; longer than the probe by download, image and node
    pulumi_timeout_minutes: int  # custom timeouts of Deployment and Service; longer than the deadline
