"""Start-ups of vLLM as it logged them: `tests/data/startup_logs.yaml`, with the planner's answer beside each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning import catalogue
from planning.architecture import Architecture, from_hf_config
from planning.memory import EngineOptions, MemoryPlan, memory_plan
from tests import hf_configs

FILE = Path(__file__).parents[1] / "data" / "startup_logs.yaml"


@dataclass(frozen=True)
class Row:
    """One start-up; GiB per GPU."""

    name: str
    data: dict[str, Any]

    @property
    def logged(self) -> dict[str, Any]:
        return self.data["logged"]

    @property
    def options(self) -> dict[str, Any]:
        return self.data.get("options", {})

    @property
    def architecture(self) -> Architecture:
        return _architecture(self.name)

    @property
    def has_known_inputs(self) -> bool:
        """Whether everything that available memory depends on was logged or follows from the model and the card."""
        known = not self.data.get("total-unknown") and "available" in self.logged
        return known and (not self.data.get("weights-given") or "weights" in self.logged)

    def plan(self, **overrides: Any) -> MemoryPlan:
        options = {**self.options, **overrides.pop("options", {})}
        given = self.logged.get("weights") if self.data.get("weights-given") else None
        return memory_plan(
            self.architecture,
            catalogue.gpu(self.data["gpu"]),
            tensor_parallel_size=self.data.get("tensor", 1),
            options=EngineOptions(**options),
            engine_version=self.data["version"],
            gpu_memory_gib=self.data.get("memory-gib"),
            weights_gib=given,
            **overrides,
        )


@cache
def rows() -> dict[str, Row]:
    """All rows by name, in the file's order."""
    return {data["name"]: Row(data["name"], data) for data in yaml.safe_load(FILE.read_text("utf-8"))["rows"]}


@cache
def _architecture(name: str) -> Architecture:
    data = rows()[name].data
    config, beside = hf_configs.load(data["config"]) if "config" in data else (data["shape"], None)
    return from_hf_config({**config, **data.get("changes", {})}, beside)
