"""Layout: tensor parallel size, replicas per node and nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model's replicas go."""

    vm_size: str
    pool: str  # GpuPoolPlan.name
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int
    gpus_per_replica: int
    replicas_per_node: int  # how many of this model one empty node holds
    reason: str  # one sentence: why this layout
