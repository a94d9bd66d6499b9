"""The harness: what the unmodified program registers in a preview, recorded by the embedded engine."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sandbox.engine import Recording, Secret, record

ROOT = Path(__file__).parents[2]
#: Models whose graphs are snapshots: gated and pinned, small and open, quantised experts with parsers of their own.
PRESETS = ("llama-3.3-70b-instruct", "qwen3-8b", "qwen3-235b-a22b-fp8")
TOKEN = "hf_" + "thisIsNotARealToken" * 2
TOKEN_KEY = "aks-vllm:hf-token"  # noqa: S105  the key, not the value

SECRET_KEYS = (TOKEN_KEY, "aks-vllm:benchmark-key")

AGENT_POOL = "azure-native:containerservice:AgentPool"
CLUSTER = "azure-native:containerservice:ManagedCluster"
RESOURCE_GROUP = "azure-native:resources:ResourceGroup"
NETWORK = "azure-native:network:VirtualNetwork"
STORAGE_ACCOUNT = "azure-native:storage:StorageAccount"
BLOB_CONTAINER = "azure-native:storage:BlobContainer"
GRANT = "azure-native:authorization:RoleAssignment"
PROVIDER = "pulumi:providers:kubernetes"
DEPLOYMENT = "kubernetes:apps/v1:Deployment"
JOB = "kubernetes:batch/v1:Job"
SERVICE = "kubernetes:core/v1:Service"
CONFIG_MAP = "kubernetes:core/v1:ConfigMap"
SECRET = "kubernetes:core/v1:Secret"  # noqa: S105  a type

# An Output inside an f-string raises instead of printing a warning into the value.
os.environ["PULUMI_ERROR_OUTPUT_STRING"] = "true"

Record = Callable[..., Recording]


def stack_config(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the Pulumi CLI hands them over: full keys, values as strings, lists and maps as JSON text."""
    base = {"environment": "development", "preset": "llama-3.3-70b-instruct"}
    merged = {key: value for key, value in {**base, **settings}.items() if value is not None}
    values = {
        f"aks-vllm:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in merged.items()
    }
    location = values.pop("aks-vllm:location", "eastus")
    token = {} if "key-vault" in merged else {TOKEN_KEY: TOKEN}
    return {"azure-native:location": location, **token, **values}


def recorded_preview(stack: str = "test", **settings: Any) -> Recording:
    """Preview with these settings (underscores for dashes; None removes a default). The same one runs only once."""
    return _recorded(stack, json.dumps({key.replace("_", "-"): value for key, value in settings.items()}))


@functools.cache
def _recorded(stack: str, settings: str) -> Recording:
    config = stack_config(json.loads(settings))
    return record(ROOT, stack, config, secret_keys=[key for key in SECRET_KEYS if key in config])


def plain_strings(value: Any) -> Iterator[str]:
    """Every string, keys included, that is not inside a secret."""
    if isinstance(value, Secret):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from plain_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from plain_strings(item)
