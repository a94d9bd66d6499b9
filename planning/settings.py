"""A stack's configuration, typed: from the Pulumi CLI's bag of strings or from the stack file, the same object."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from planning.findings import Problem

NAMESPACE = "aks-vllm"
LOCATION = "azure-native:location"
STACKS = Path(__file__).parents[1] / "stacks"

#: What a stack may be called: https://www.pulumi.com/docs/iac/concepts/stacks/#create-a-stack
_STACK = re.compile(r"[A-Za-z0-9._-]{1,100}")
#: A Service is named after its model (RFC 1035 label); the ServiceAccount "default" exists in every namespace, and
#: `edge` is what stands before the models.
_MODEL_NAME = re.compile(r"(?!(?:default|edge)$)[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

WholeNumber = Annotated[int, Strict(), BeforeValidator(lambda v: int(v) if _is_digits(v) else v)]
Text = Annotated[str, Field(coerce_numbers_to_str=True)]


class _Described(BaseModel):
    """Fields are written in kebab-case in stack files."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_alias=True,
        validate_by_name=True,
    )

    def given(self, field: str) -> bool:
        """Whether the stack file says so, rather than a default."""
        return field in self.model_fields_set


class GpuNodes(_Described):
    """Every GPU pool's nodes. The cluster autoscaler works between the bounds where they differ."""

    min: WholeNumber | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Nodes that are always there, and paid for. Default: as many as the models need.",
        examples=[1],
    )
    max: WholeNumber | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Nodes that quota must allow for. Default: as many as the models need.",
        examples=[2],
    )
    zones: list[Annotated[str, Field(pattern=r"^[123]$", coerce_numbers_to_str=True)]] = Field(
        default_factory=list,
        description="Availability zones of the nodes. Leave it out unless a capacity reservation or a disk ties you to "
        "one: GPU capacity differs between zones, and changing it builds a new pool.",
        examples=[["1"]],
    )
    spot: bool = Field(
        default=False,
        description="Spot nodes: cheaper, and taken away with 30 seconds' notice. Not in production.",
        examples=[True],
    )
    capacity_reservation_group: Text | None = Field(
        default=None,
        pattern=r"(?i)^/subscriptions/[0-9a-f-]{36}/resourceGroups/[^/]{1,90}/providers/Microsoft\.Compute"
        r"/capacityReservationGroups/[^/]{1,80}$",
        description="Id of a capacity reservation group that holds these nodes: the only guarantee that they exist. "
        "It is billed from the day it is made.",
        examples=[
            "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-gpus/providers/Microsoft.Compute"
            "/capacityReservationGroups/h100"
        ],
    )
    vcpu_quota: WholeNumber | None = Field(
        default=None,
        ge=1,
        description="vCPUs that the subscription may use of the GPU family (`make preflight` prints it). Where it "
        "holds two pools, a pool that must be replaced is made before the old one goes.",
        examples=[192],
    )

    @model_validator(mode="after")
    def _ordered(self) -> GpuNodes:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not exceed max ({self.max})")
        return self


class NetworkSettings(_Described):
    """Address ranges of the cluster. Changing one after the first update replaces the cluster."""

    vnet_cidr: Text = Field(
        default="10.224.0.0/16",
        description="Range of the virtual network. Must not overlap networks that it will be peered with.",
        examples=["10.224.0.0/16"],
    )
    node_subnet_cidr: Text = Field(
        default="10.224.0.0/20",
        description="Part of it that nodes and load balancers get their addresses from.",
        examples=["10.224.0.0/20"],
    )
    pod_cidr: Text = Field(
        default="10.244.0.0/16",
        description="Range of the pods, an overlay: a /24 of it for each node, and it cannot grow later.",
        examples=["10.244.0.0/16"],
    )
    service_cidr: Text = Field(
        default="10.245.0.0/16",
        description="Range of the Services, inside the cluster only.",
        examples=["10.245.0.0/16"],
    )
    dns_service_ip: Text | None = Field(
        default=None,
        description="Address of the cluster's DNS, in the range of the Services. Default: its tenth.",
        examples=["10.245.0.10"],
    )
    subnet_id: Text | None = Field(
        default=None,
        description="Id of a subnet that exists, for networks that a platform team owns. The stack then makes no "
        "network, and grants the cluster Network Contributor on it. Say its ranges in vnet-cidr and node-subnet-cidr "
        "to have them checked.",
        examples=[
            "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-network/providers/Microsoft.Network"
            "/virtualNetworks/hub/subnets/aks"
        ],
    )
    outbound: Literal["nat-gateway", "load-balancer", "user-defined-routing"] = Field(
        default="nat-gateway",
        description="How nodes in a subnet of your own reach the internet: a NAT gateway attached to it, the cluster's "
        "load balancer, or its route table.",
        examples=["user-defined-routing"],
    )


class MaintenanceSettings(_Described):
    """A weekly window, UTC."""

    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"] = Field(
        default="Sunday", description="Day of the week.", examples=["Sunday"]
    )
    start: Text = Field(
        default="02:00", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="Time of day, UTC.", examples=["02:00"]
    )
    hours: WholeNumber = Field(default=4, ge=4, le=24, description="How long it lasts.", examples=[4])


class BudgetSettings(_Described):
    """A budget of the resource group. Mails go out at 80 % spent and at 100 % forecast."""

    usd_per_month: WholeNumber = Field(ge=1, description="What a month may cost, in US dollars.", examples=[80000])
    contacts: list[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]] = Field(
        min_length=1, max_length=50, description="Who gets the mail.", examples=[["platform@example.com"]]
    )
    first_month: Text = Field(
        pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$",
        description="First month it counts. Azure takes no month before the present one.",
        examples=["2026-12"],
    )


class WorkloadSettings(_Described):
    """The load that a model is planned for."""

    input_tokens: WholeNumber = Field(ge=1, description="Tokens of a prompt, mean.", examples=[1024])
    output_tokens: WholeNumber = Field(ge=1, description="Tokens of an answer, mean.", examples=[512])
    users: WholeNumber = Field(
        ge=1,
        le=1_000_000,
        description="Requests that are under way at any time, over all replicas. People who read and type between "
        "requests count for less than one.",
        examples=[64],
    )
    max_tpot_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Longest time per output token that users accept, in milliseconds: 40 is 25 tokens a second. "
        "Default: no limit.",
        examples=[40],
    )


class WeightSettings(_Described):
    """Where a model's weights come from, and where a downloaded copy lies."""

    source: Literal["hugging-face", "azure-blob"] | None = Field(
        default=None,
        description="azure-blob: a Job uploads the weights once, replicas stream them from the stack's own storage "
        "account and need no internet. hugging-face: every replica downloads them when it starts. Default: azure-blob "
        "in production, hugging-face in development.",
        examples=["azure-blob"],
    )
    storage_class: Text | None = Field(
        default=None,
        # https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
        description="With hugging-face: the StorageClass of a CSI driver for local NVMe disks, which must be in the "
        "cluster already. Default: the node's OS disk.",
        examples=["local"],
    )


class ModelSettings(_Described):
    """One served model."""

    preset: Text = Field(
        description="Which model: the name of a file in presets/models/. `make presets` lists them.",
        examples=["llama-3.3-70b-instruct"],
    )
    max_model_len: WholeNumber | None = Field(
        default=None,
        ge=1,
        description="Longest request in tokens, prompt and answer together. Longer means fewer requests at once. "
        "Default: what the model was trained for, if that fits.",
        examples=[16384],
    )
    replicas: WholeNumber | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Copies that share the load. Two let an update keep serving. Default: two if one node holds them.",
        examples=[2],
    )
    vm_size: Text | None = Field(
        default=None,
        description="Azure VM size of the GPU nodes. Changing it builds a new pool. Default: the preset's.",
        examples=["Standard_ND96isr_H100_v5"],
    )
    revision: Text | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of the model on Hugging Face. Leave it alone to follow the preset's pinned one.",
        examples=["6f6073b423013f6a7d4d9f39144961bfbfbc386b"],
    )
    workload: WorkloadSettings | None = Field(
        default=None,
        description="The load to plan for: layout and replicas that are left open are chosen for the lowest cost per "
        "token under it. Default: none; the report then shows a chat of 1024 and 512 tokens.",
        examples=[{"input-tokens": 1024, "output-tokens": 512, "users": 64, "max-tpot-ms": 40}],
    )
    weights: WeightSettings = Field(
        default_factory=WeightSettings,
        description="Where the weights come from: docs/weights.md says what each way costs and needs.",
        examples=[{"source": "azure-blob"}],
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of `vllm serve` by their own names, without dashes in front; checked against the version "
        "that is deployed. What has a key of its own (max-model-len) stands there.",
        examples=[{"max-num-seqs": 256}],
    )


class EdgeKey(_Described):
    """One client of the endpoint."""

    sha256: Text = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the API key, 64 hexadecimal digits: the key itself never stands in a file. "
        """`printf %s "$KEY" | sha256sum` prints it.""",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    requests_per_minute: WholeNumber | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Requests that this key may make in any minute; further ones get 429. Default: no limit.",
        examples=[600],
    )


class EdgeSettings(_Described):
    """Who may reach the models, and how."""

    access: Literal["internal", "public"] = Field(
        default="internal",
        description="internal: an address in the cluster's network. public: one on the internet, which needs TLS and "
        "keys.",
        examples=["internal"],
    )
    host: Text | None = Field(
        default=None,
        max_length=253,
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Name under which clients know the endpoint; its DNS entry is yours to make. Default: the load "
        "balancer's address.",
        examples=["llm.example.com"],
    )
    tls_secret: Text | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
        description="Secret of type kubernetes.io/tls in the models' namespace, as cert-manager or the Secrets Store "
        "makes it. A renewed certificate is taken up by itself. Default: clear text.",
        examples=["edge-tls"],
    )
    certificate: Text | None = Field(
        default=None,
        description="The public part of what tls-secret holds, in PEM: checked against host, and for its end, before "
        "anything is deployed. Never the private key.",
        examples=["-----BEGIN CERTIFICATE-----"],
    )
    keys: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")], EdgeKey] = Field(
        default_factory=dict,
        max_length=1000,
        description="API keys: a map from the client's name, which the access log shows, to the key's SHA-256 and "
        "limit. Default: none, and whoever reaches the endpoint may use it.",
        examples=[{"team-a": {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}}],
    )
    paths: tuple[str, ...] = Field(
        default=("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
        description="Routes of vLLM that are open, and no others. Besides the default ones there are /v1/responses, "
        "/tokenize and /detokenize.",
        examples=[["/v1/models", "/v1/chat/completions"]],
    )
    max_body_mib: WholeNumber = Field(
        default=32,
        ge=1,
        le=1024,
        description="Largest request body, in MiB; a larger one gets 413. Images travel inside the body.",
        examples=[32],
    )


class Settings(_Described):
    """A stack. `models` always holds every model; the flat keys of a stack file are its one entry `model`."""

    location: Text = Field(
        pattern=r"^[a-z][a-z0-9]*$",
        description="Azure region. Changing it replaces everything.",
        examples=["eastus"],
    )
    environment: Literal["production", "development"] = Field(
        default="production",
        description="production: images and models are pinned, the control plane has an uptime SLA, what must not "
        "vanish is protected. development: none of that.",
        examples=["development"],
    )
    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description="Several models: a map from a name of your choice to the keys of one model. The name is the "
        "model's identity: renaming one takes the old endpoint away.",
        examples=[{"chat": {"preset": "llama-3.3-70b-instruct"}}],
    )
    gpu_nodes: GpuNodes = Field(
        default_factory=GpuNodes,
        description="Nodes of every GPU pool. Default: exactly as many as the models need.",
        examples=[{"min": 1, "max": 2}],
    )
    kubernetes_version: Text = Field(
        default="1.36",  # AKS supports it until June 2027; https://learn.microsoft.com/azure/aks/supported-kubernetes-versions
        pattern=r"^1\.(3[4-9]|[4-9][0-9])(\.[0-9]+)?$",
        description="Kubernetes of the control plane and all nodes, at least 1.34 (the first with a stable preStop "
        "sleep). Raising it drains every GPU node.",
        examples=["1.36"],
    )
    kubelogin: Literal["azurecli", "workloadidentity", "spn", "msi"] = Field(
        default="azurecli",
        description="How whoever runs Pulumi signs in to the cluster: azurecli for people, the others for pipelines.",
        examples=["workloadidentity"],
    )
    protect: bool | None = Field(
        default=None,
        description="Whether Pulumi refuses to delete cluster and resource group. Set it to false only to remove the "
        "stack. Default: in production.",
        examples=[False],
    )
    max_answer_tokens: WholeNumber = Field(
        default=8192,
        ge=1,
        le=1_000_000,  # nine hours at 30 tokens a second; AKS drains a node for at most 24
        description="Longest answer that an update lets a replica finish, in tokens. More makes updates and drains "
        "slower, less cuts long answers off.",
        examples=[8192],
    )
    hf_token: bool = Field(
        default=False,
        description="Hugging Face token, for gated models; always encrypted: "
        "pulumi config set --secret aks-vllm:hf-token. The program sees only whether there is one.",
    )
    network: NetworkSettings = Field(
        default_factory=NetworkSettings,
        description="Address ranges, or a subnet of your own. Changing them replaces the cluster.",
        examples=[{"vnet-cidr": "10.224.0.0/16"}],
    )
    api_server_access: Literal["private", "authorized-ranges", "public"] | None = Field(
        default=None,
        description="Who reaches the cluster's API server: only the network, some ranges of the internet, or everybody "
        "(not in production). A private one cannot be deployed to from a laptop or a hosted runner. Default: private "
        "in production, else public.",
        examples=["authorized-ranges"],
    )
    authorized_ip_ranges: list[Text] = Field(
        default_factory=list,
        description="With api-server-access authorized-ranges: where Pulumi and kubectl run, as the internet sees it.",
        examples=[["203.0.113.0/24"]],
    )
    maintenance: MaintenanceSettings = Field(
        default_factory=lambda: MaintenanceSettings(),
        description="When AKS may do its own weekly work on the control plane. It upgrades no node: only "
        "kubernetes-version does.",
        examples=[{"day": "Sunday", "start": "02:00"}],
    )
    add_ons: list[Literal["azure-policy", "defender", "image-cleaner", "log-analytics"]] | None = Field(
        default=None,
        description="Parts of AKS to switch on: azure-policy (Gatekeeper), defender (with log-analytics), "
        "image-cleaner (removes unused images with known holes, weekly), log-analytics (the control plane's logs, 30 "
        "days). Default: log-analytics in production, else none.",
        examples=[["log-analytics", "image-cleaner"]],
    )
    budget: BudgetSettings | None = Field(
        default=None,
        description="Mails somebody when the stack's resource group costs more than planned. It stops nothing.",
        examples=[{"usd-per-month": 80000, "contacts": ["platform@example.com"], "first-month": "2026-12"}],
    )
    tags: dict[
        # Azure's limits: https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources
        Annotated[str, Field(pattern=r"^[^<>%&\\?/]{1,512}$")],
        Annotated[str, Field(coerce_numbers_to_str=True, max_length=256)],
    ] = Field(
        default_factory=dict,
        max_length=48,  # of 50; the plan adds two
        description="Azure tags of the resource group and the cluster.",
        examples=[{"team": "inference"}],
    )
    edge: EdgeSettings = Field(
        default_factory=EdgeSettings,
        description="Who may reach the models, and how: address, TLS, API keys, open routes, limits.",
        examples=[{"access": "internal"}],
    )
    #: Written with the flat keys: messages name those. Not a setting.
    flat: bool = Field(default=False, exclude=True)

    def key(self, model: str, *path: str) -> str:
        """How the stack file names a model's setting: `aks-vllm:replicas` or `aks-vllm:models.chat.replicas`."""
        return f"{NAMESPACE}:" + ".".join(path if self.flat else ("models", model, *path))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read. With problems, `settings` holds the rest, for the plan to find its own; None: nothing is left."""

    stack: str
    source: str
    settings: Settings | None
    problems: tuple[Problem, ...]
    overrides: frozenset[str] = frozenset()  # keys that came with --set

    def source_of(self, key: str) -> str:
        """Where a key's value comes from: the stack file, or --set."""
        changed = any(_covers(override, key) or _covers(key, override) for override in self.overrides)
        return "--set" if changed else self.source


_FLAT = tuple(field.replace("_", "-") for field in ModelSettings.model_fields)
_OWN = tuple(field.replace("_", "-") for field in Settings.model_fields if field not in ("location", "flat"))
_KEYS = (*_OWN, *_FLAT)
#: Maps of the stack with keys of their own.
_GROUPS: dict[str, type[_Described]] = {
    "gpu-nodes": GpuNodes,
    "network": NetworkSettings,
    "maintenance": MaintenanceSettings,
    "budget": BudgetSettings,
    "edge": EdgeSettings,
}
_WORKLOAD = tuple(field.replace("_", "-") for field in WorkloadSettings.model_fields)
_WEIGHTS = tuple(field.replace("_", "-") for field in WeightSettings.model_fields)
_MAPS = ("vllm", "tags", "workload", "weights", *_GROUPS)
#: Their text is taken as it is; every other value of a bag is JSON.
_TEXTS = (
    "preset",
    "vm-size",
    "revision",
    "environment",
    "kubernetes-version",
    "kubelogin",
    "hf-token",
    "api-server-access",
)
_EXAMPLES = {
    alias.replace("_", "-"): field.examples[0]
    for model in (Settings, ModelSettings, WorkloadSettings, WeightSettings, *_GROUPS.values())
    for alias, field in model.model_fields.items()
    if field.examples
}


def from_pulumi(bag: Mapping[str, str], secret_keys: Collection[str], stack: str) -> Reading:
    """Settings from what the CLI hands to a program: full keys, strings, maps as JSON text. Never raises.

    The value of a secret is not looked at: callers may, and should, leave it out.
    """
    return _read(dict(bag), set(secret_keys), stack, f"stacks/Pulumi.{stack}.yaml", [], frozenset())


def from_file(stack: str, *, overrides: Sequence[str] = (), folder: Path = STACKS) -> Reading:
    """Settings from `Pulumi.<stack>.yaml` and `key=value` pairs that replace what stands there. Never raises."""
    source = f"{folder.name}/Pulumi.{stack}.yaml"
    if not _STACK.fullmatch(stack) or not (folder / f"Pulumi.{stack}.yaml").is_file():
        problem = Problem(
            key="stack",
            value=stack,
            limit="there is no such stack file",
            source=source,
            remedy=f"the stacks are {', '.join(stacks(folder)) or 'none yet'}",
        )
        return Reading(stack=stack, source=source, settings=None, problems=(problem,))
    config, problems = _load(folder / f"Pulumi.{stack}.yaml", source)
    if config is None:
        return Reading(stack=stack, source=source, settings=None, problems=tuple(problems))
    replaced = _override(config, overrides, problems)
    bag: dict[str, str] = {}
    secrets: set[str] = set()
    for key, value in config.items():
        if _holds_secret(value):
            secrets.add(key)
        bag[key] = _as_cli_text(value)
    return _read(bag, secrets, stack, source, problems, frozenset(replaced))


def config_of(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a stack file says, by full keys, with `key=value` pairs over it; empty where it is no YAML."""
    config = _load(file, file.name)[0] or {}
    _override(config, overrides, [])
    return config


def stacks(folder: Path = STACKS) -> tuple[str, ...]:
    """Names of the stacks that have a file."""
    return tuple(sorted(path.name[len("Pulumi.") : -len(".yaml")] for path in folder.glob("Pulumi.*.yaml")))


def schema() -> dict[str, Any]:
    """JSON Schema of a stack file, for editors."""
    whole = Settings.model_json_schema(by_alias=True)
    model = ModelSettings.model_json_schema(by_alias=True)
    properties = {key: value for key, value in whole["properties"].items() if key not in ("location", "flat")}
    properties["hf-token"] = {
        "description": properties["hf-token"]["description"],
        "type": "object",
        "properties": {"secure": {"type": "string"}},
        "required": ["secure"],
        "additionalProperties": False,
    }
    config = {
        f"{NAMESPACE}:{key}": _also_quoted(value)
        for key, value in sorted({**properties, **model["properties"]}.items())
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stack of aks-vllm",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {LOCATION: whole["properties"]["location"], **config},
                "patternProperties": {f"^(?!{NAMESPACE}:)[^:]+:": {}},
                "additionalProperties": False,
                "required": [LOCATION],
            }
        },
        "required": ["config"],
        "$defs": whole["$defs"],
    }


def _also_quoted(value: dict[str, Any]) -> dict[str, Any]:
    """`pulumi config set` writes numbers and booleans in quotes."""
    kinds = [part.get("type") for part in value.get("anyOf", [value])]
    quoted = [
        {"type": "string", "pattern": pattern}
        for kind, pattern in (("integer", "^[0-9]+$"), ("boolean", "^(true|false)$"))
        if kind in kinds
    ]
    if not quoted:
        return value
    own = {key: item for key, item in value.items() if key in ("title", "description", "default", "examples")}
    kept = value.get("anyOf") or [{key: item for key, item in value.items() if key not in own}]
    return {**own, "anyOf": [*kept, *quoted]}


# The stack file, and what --set makes of it.


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads scalars as the Pulumi CLI does (YAML 1.2: `yes` and dates are text), and notes keys given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[tuple[str, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    self.twice.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
# PyYAML's own reads 1e5, which YAML 1.2 knows as a number, only with a dot in it.
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))


def _load(path: Path, source: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The `config:` of a stack file with full keys; None where it cannot be read at all."""

    def refused(value: object, limit: str, remedy: str) -> tuple[None, list[Problem]]:
        return None, [Problem(key="config", value=value, limit=limit, source=source, remedy=remedy)]

    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return refused("(the file)", f"is not YAML: {error.problem}{line}", "correct it there")
    except (OSError, UnicodeDecodeError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        return refused("(the file)", f"cannot be read: {type(error).__name__}", "make it a YAML file in UTF-8")
    config = (document if isinstance(document, dict) else {}).get("config") or {}
    if not isinstance(config, dict):
        return refused(type(config).__name__, "must be a map of keys to values", f"for example {LOCATION}: eastus")
    problems = [
        Problem(
            key=_full(key),
            value="(twice)",
            limit=f"is given a second time in line {line}",
            source=source,
            remedy="keep one of the two",
        )
        for key, line in loader.twice
    ]
    full: dict[str, Any] = {}
    for key, value in config.items():
        if _full(str(key)) in full:
            problems.append(_given_twice(_full(str(key)), "with and without its namespace", source))
        full[_full(str(key))] = value
    return full, problems


def _override(config: dict[str, Any], pairs: Iterable[str], problems: list[Problem]) -> set[str]:
    """Put each `key=value` into the config; the full dotted keys that were set."""
    done: set[str] = set()
    for pair in pairs:
        written, equals, text = pair.partition("=")
        path = _path(written.strip())
        key = ".".join(path)
        if not equals or not written.strip():
            problems.append(
                Problem(
                    key=written or "--set",
                    value=None,
                    limit="has no value",
                    source="--set",
                    remedy="write --set key=value, for example --set max-model-len=16384",
                )
            )
            continue
        if any(_covers(other, key) or _covers(key, other) for other in done):
            problems.append(_given_twice(key, "by --set", "--set"))
            continue
        done.add(key)
        value = _typed(text)
        into = config
        for part in path[:-1]:
            inner = _json_or_text(into[part]) if isinstance(into.get(part), str) else into.get(part)
            # A copy: an anchor may stand for several maps of the file.
            into[part] = dict(inner) if isinstance(inner, Mapping) and not _holds_secret(inner) else {}
            into = into[part]
        keep_text = len(path) == 1 and not isinstance(value, dict | list | str)
        into[path[-1]] = text.strip() if keep_text else value
    return done


def _path(written: str) -> list[str]:
    """`vllm.max-num-seqs` is two steps, `models.chat.vllm.x` four; whatever follows `vllm.` is one name."""
    full = _full(written)
    head, dot, rest = full.partition(".")
    if dot and head == f"{NAMESPACE}:models":
        name, dot, inner = rest.partition(".")
        return [head, name, *(_inner(inner) if dot else ())]
    if dot and head == f"{NAMESPACE}:edge":
        return [head, *(rest.split(".", 2) if rest.startswith("keys.") else [rest])]
    return [head, rest] if dot and head.removeprefix(f"{NAMESPACE}:") in _MAPS else [full]


def _inner(key: str) -> list[str]:
    head, dot, rest = key.partition(".")
    return [head, rest] if dot and head in _MAPS else [key]


def _full(key: str) -> str:
    """The CLI puts the project's name before a key that has no namespace."""
    return key if ":" in key else f"{NAMESPACE}:{key}"


def _typed(text: str) -> Any:
    """A value of --set, as YAML would read it; text that is no YAML stays text."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _holds_secret(value: Any, depth: int = 0) -> bool:
    """Whether a value of the file is encrypted, wholly or somewhere inside: the CLI then treats all of it as secret."""
    if depth > 50:  # an alias that contains itself
        return False
    if isinstance(value, Mapping):
        if set(value) == {"secure"} and isinstance(value["secure"], str):
            return True
        return any(_holds_secret(item, depth + 1) for item in value.values())
    return isinstance(value, list) and any(_holds_secret(item, depth + 1) for item in value)


def _as_cli_text(value: Any) -> str:
    """A value of the file as the CLI hands it to the program."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):
        return "(cannot be written as JSON)"


# From the bag to Settings.


def _read(
    bag: dict[str, str],
    secrets: set[str],
    stack: str,
    source: str,
    problems: list[Problem],
    overrides: frozenset[str],
) -> Reading:
    origin = Reading(stack=stack, source=source, settings=None, problems=(), overrides=overrides)

    def refuse(key: str, value: object, limit: str, remedy: str) -> None:
        problems.append(Problem(key=key, value=value, limit=limit, source=origin.source_of(key), remedy=remedy))

    raw: dict[str, Any] = {}
    for written, text in bag.items():
        full = _full(written)
        key = full.removeprefix(f"{NAMESPACE}:")
        if full == LOCATION:
            raw["location"] = text
        elif key == full:
            continue  # another provider's
        elif key == "hf-token":
            raw["hf-token"] = full in secrets
            if full not in secrets:
                refuse(
                    full,
                    "(hidden)",
                    "must be encrypted",
                    f"revoke that token, as it was readable, and run `pulumi config set --secret {full} "
                    f"--stack {stack}`, which asks for a new one",
                )
        elif key not in _KEYS:
            refuse(full, _unless_token_like(key, text), "is not a key of this program", _nearest(key, _KEYS))
        elif full in secrets:
            refuse(full, "(hidden)", "must not be encrypted", "only aks-vllm:hf-token is a secret; write it in clear")
        elif text == "":
            refuse(full, "", "is empty", "give it a value or remove the line")
        else:
            raw[key] = text if key in _TEXTS else _json_or_text(text)
    if "location" not in raw:
        raw["location"] = "unknown"
        refuse(LOCATION, None, "is required", f"`pulumi config set {LOCATION} eastus --stack {stack}`")

    flat = [key for key in _FLAT if key in raw]
    if "models" in raw and flat:
        limit = f"stands beside {', '.join(flat)}: the same thing in two places"
        refuse(f"{NAMESPACE}:models", "(a map)", limit, "move them into the map, or write one model without it")
        raw = {key: value for key, value in raw.items() if key not in flat}
    elif "models" not in raw:
        raw["models"] = {"model": {key: raw.pop(key) for key in flat}}
        raw["flat"] = True
    settings = _validated(raw, stack, refuse, _problem_keys(problems))
    unique = {(p.key, p.limit): p for p in problems}
    return replace(origin, settings=settings, problems=tuple(unique.values()))


def _problem_keys(problems: Iterable[Problem]) -> set[str]:
    return {problem.key for problem in problems}


def _validated(raw: dict[str, Any], stack: str, refuse: Any, told: set[str]) -> Settings | None:
    """Settings of whatever is valid; what is not is refused and left out."""
    _check_names(raw, refuse)
    for _ in range(3):  # leaving out one invalid value may uncover another, twice at most
        try:
            return Settings.model_validate(raw)
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False, include_context=True):
                path = [part for part in error["loc"] if isinstance(part, str) and part != "[key]"]
                _refuse_error(error, _trim(path, raw), raw, stack, refuse, told)
                _drop(raw, path)
    return None


def _check_names(raw: dict[str, Any], refuse: Any) -> None:
    """Names of models, and keys that nobody knows at the levels below the top."""
    models = raw.get("models")
    if isinstance(models, dict):
        if not models:
            refuse(f"{NAMESPACE}:models", "{}", "holds no model", "for example {chat: {preset: qwen3-8b}}")
        for name in [name for name in models if not raw.get("flat") and not _MODEL_NAME.fullmatch(name)]:
            limit = "must be 1 to 63 lower-case letters, digits and hyphens, begin with a letter, and not be `default` "
            limit += "or `edge`"
            refuse(f"{NAMESPACE}:models.{name}", name, limit, "its Service and its ServiceAccount are named after it")
            del models[name]
        for name, model in models.items():
            if isinstance(model, dict):
                prefix = f"{NAMESPACE}:" if raw.get("flat") else f"{NAMESPACE}:models.{name}."
                _check_unknown(model, _FLAT, prefix.rstrip("."), refuse)
                if isinstance(model.get("workload"), dict):
                    _check_unknown(model["workload"], _WORKLOAD, f"{prefix}workload", refuse)
                if isinstance(model.get("weights"), dict):
                    _check_unknown(model["weights"], _WEIGHTS, f"{prefix}weights", refuse)
    for group, kind in _GROUPS.items():
        if isinstance(raw.get(group), dict):
            known = [field.replace("_", "-") for field in kind.model_fields]
            _check_unknown(raw[group], known, f"{NAMESPACE}:{group}", refuse)


def _check_unknown(values: dict[str, Any], known: Sequence[str], prefix: str, refuse: Any) -> None:
    for key in [key for key in values if key not in known]:
        value = _unless_token_like(key, values.pop(key))
        remedy = "it belongs to the stack, beside `models`" if key in _OWN else _nearest(key, known)
        refuse(f"{prefix}.{key}", value, "is not a key of this program", remedy)


def _trim(path: list[str], raw: Mapping[str, Any]) -> list[str]:
    """The path as the stack file has it: without the entry that the flat keys are shorthand for."""
    return path[2:] if raw.get("flat") and path[:2] == ["models", "model"] else path


def _refuse_error(error: Any, path: list[str], raw: Mapping[str, Any], stack: str, refuse: Any, told: set[str]) -> None:
    name = path[-1] if path else "models"
    full = LOCATION if path == ["location"] else f"{NAMESPACE}:{'.'.join(path) or 'preset'}"
    if error["type"] == "missing":
        if name == "preset":
            from planning import catalogue

            command = f"`pulumi config set aks-vllm:preset {catalogue.preset_names()[0]} --stack {stack}`"
            known = f"one of {', '.join(catalogue.preset_names())}"
            if full not in told:
                refuse(full, None, "is required", f"{known}, for example {command}" if raw.get("flat") else known)
        else:
            refuse(full, None, "is required", _example(name))
        return
    if path[:2] == ["edge", "keys"] and name != "requests-per-minute" and len(path) > 2:
        _refuse_key(error, path, refuse)
        return
    refuse(full, error["input"], _limit(error, name), _example(name))


def _refuse_key(error: Any, path: Sequence[str], refuse: Any) -> None:
    """Whatever stands where a hash or a name should may be an API key: it is not repeated."""
    remedy = """the key itself belongs to its owner alone: `printf %s "$KEY" | sha256sum` prints what to write"""
    key = f"{NAMESPACE}:{'.'.join(path)}"
    if "[key]" in error["loc"]:
        limit = "must be a name of 1 to 63 lower-case letters, digits and hyphens, and begin with a letter"
        refuse(f"{NAMESPACE}:edge.keys", "(hidden)", limit, "for example keys: {team-a: {sha256: ...}}")
    elif error["type"] == "extra_forbidden":
        refuse(f"{NAMESPACE}:edge.keys.{path[2]}", "(hidden)", "takes sha256 and requests-per-minute only", remedy)
    elif path[-1] == "sha256":
        limit = "must be the SHA-256 of an API key, 64 lower-case hexadecimal digits"
        refuse(key, "(hidden)", limit, f"replace what stood here if it was a key; {remedy}")
    else:
        refuse(key, "(hidden)", "must be a map with sha256", f"replace what stood here if it was a key; {remedy}")


def _limit(error: Any, name: str) -> str:
    """A validation error in the words of whoever writes stack files."""
    context = error.get("ctx", {})
    kind = error["type"]
    words = {
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be above {context.get('gt'):g}" if "gt" in context else "",
        "finite_number": "must be a finite number",
        "less_than_equal": f"must be at most {context.get('le')}",
        "literal_error": f"must be one of {context.get('expected', '').replace(' or ', ', ')}".replace("'", ""),
        "string_type": "must be text",
        "dict_type": "must be a map",
        "model_type": "must be a map",
        "model_attributes_type": "must be a map",
        "too_long": f"must have at most {context.get('max_length')} entries",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "value_error": str(context.get("error", error["msg"])),
    }
    patterns = {
        "revision": "must be a commit, 40 hexadecimal digits",
        "location": "must be an Azure region's name, lower-case letters and digits",
        "storage-class": "must be the name of a StorageClass, lower-case letters, digits, hyphens and dots",
        "kubernetes-version": "must be a version from 1.34 on, as 1.36 or 1.36.2",
        "zones": "must be a list of 1, 2 and 3",
        "capacity-reservation-group": "must be the id of a capacity reservation group",
        "start": "must be a time of day, as 02:00",
        "first-month": "must be a month, as 2026-12",
        "contacts": "must be a list of mail addresses",
    }
    if kind == "string_pattern_mismatch":
        return patterns.get(name, "must be 1 to 512 characters without < > % & \\ ? /")
    if kind.startswith("int"):
        return "must be a whole number"
    if kind.startswith("float"):
        return "must be a number"
    if kind.startswith("bool"):
        return "must be true or false"
    return words.get(kind, error["msg"])


def _drop(raw: dict[str, Any], path: Sequence[str]) -> None:
    """Leave an invalid value out, with what makes no sense without it."""
    if path[:1] == ["location"]:
        raw["location"] = "unknown"
    elif len(path) >= 3 and path[0] == "models" and path[2] != "preset":
        raw["models"].get(path[1], {}).pop(path[2], None)
    elif len(path) >= 2 and path[0] == "models":
        raw["models"].pop(path[1], None)
    elif len(path) >= 2 and path[0] == "edge" and isinstance(raw.get("edge"), dict):
        # The rest is looked at: a public edge without TLS is told whatever is wrong with a key.
        keys = raw["edge"].get("keys")
        if len(path) >= 3 and isinstance(keys, dict):
            keys.pop(path[2], None)
        else:
            raw["edge"].pop(path[1], None)
    elif path:
        raw.pop(path[0], None)


def _example(name: str) -> str:
    if name not in _EXAMPLES:
        return "correct it there"
    example = _EXAMPLES[name]
    written = LOCATION if name == "location" else name
    return f"for example {written}: {example if isinstance(example, str) else json.dumps(example)}"


def _nearest(key: str, known: Sequence[str]) -> str:
    if key == "location":
        return f"the region is {LOCATION}"
    near = difflib.get_close_matches(key.lower().replace("_", "-"), known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"the keys are {', '.join(sorted(known))}; options of vLLM go under vllm"


def _unless_token_like(key: str, value: object) -> object:
    """The value of a misspelt hf-token is a token."""
    near = difflib.get_close_matches(key.lower().replace("_", "-"), _KEYS, n=1)
    return "(hidden)" if near == ["hf-token"] or "token" in key.lower() else value


def _given_twice(key: str, how: str, source: str) -> Problem:
    return Problem(key=key, value="(twice)", limit=f"is given twice {how}", source=source, remedy="keep one of the two")


def _json_or_text(text: str) -> Any:
    """JSON where it is JSON, else the text: validation says what is wrong with that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _covers(setting: str, key: str) -> bool:
    """Whether a key is a setting or lies in it; vLLM takes underscores for dashes."""
    return f"{key}.".replace("_", "-").startswith(f"{setting}.".replace("_", "-"))


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) is not None
