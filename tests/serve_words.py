"""The command line that engine options become, beside one preset on one layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planning import catalogue, engine, parallelism
from planning.memory import EngineOptions

#: Without a parser of tool calls, so that the options alone decide.
PRESET = replace(catalogue.preset("llama-3.3-70b-instruct"), tool_call_parser=None)
VM = catalogue.vm_size("Standard_ND96isr_H100_v5")
LAYOUT, MEMORY = parallelism.choose_layout(
    PRESET.architecture,
    VM,
    replicas=2,
    tensor_parallel_size=4,
    pipeline_parallel_size=None,
    options=EngineOptions(max_model_len=16384),
)


def words(options: Mapping[str, object], stages: int = 1) -> tuple[str, ...]:
    """What stands behind `vllm serve`."""
    return engine.arguments(
        options=engine.normalise(options),
        model_path="/models/m/abc",
        served_model_name="m",
        port=8000,
        layout=replace(LAYOUT, pipeline_parallel_size=stages),
        memory=MEMORY,
        shutdown_timeout_seconds=274,
        preset=PRESET,
    )


def accepted(options: Mapping[str, Any]) -> bool:
    return not engine.check(options, prefix="aks-vllm:vllm", source="stacks/Pulumi.x.yaml")
