"""A stack's configuration, typed: every setting, what it does, and when not to touch it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

NAMESPACE = "aks-vllm"
LOCATION = "azure-native:location"


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) is not None


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
    """Address ranges of the cluster. Changing that of pods or Services replaces the cluster; a subnet is for good."""

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


class ExistingClusterSettings(_Described):
    """A cluster that somebody else makes and owns."""

    id: Text | None = Field(
        default=None,
        pattern=r"(?i)^/subscriptions/[0-9a-f-]{36}/resourceGroups/[^/]{1,90}/providers"
        r"/Microsoft\.ContainerService/managedClusters/[^/]{1,63}$",
        description="Id of the AKS cluster: the stack makes its GPU pools in it. Without an id the cluster is the one "
        "of aks-vllm:kubeconfig, and its GPU nodes are there already.",
        examples=[
            "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
            "/Microsoft.ContainerService/managedClusters/platform"
        ],
    )
    namespace: Text = Field(
        default="vllm",
        pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Namespace that the stack makes for its models. Two stacks of one cluster need two.",
        examples=["chat"],
    )
    device_plugin: bool | None = Field(
        default=None,
        description="Whether the stack brings NVIDIA's device plugin. A node must have one, and not two. Default: with "
        "an id yes, as its pools are new; otherwise no.",
        examples=[False],
    )
    node_labels: dict[Text, Text] = Field(
        default_factory=dict,
        description="Without an id: labels of the GPU nodes that the models may use, beside the VM size, which every "
        "node's node.kubernetes.io/instance-type names.",
        examples=[{"team": "inference"}],
    )
    taints: list[Text] = Field(
        default_factory=list,
        description="Without an id: keys of the GPU nodes' taints, beside nvidia.com/gpu and sku, which are tolerated.",
        examples=[["dedicated"]],
    )
    fqdn_policies: bool = Field(
        default=False,
        description="Whether the cluster's Cilium filters by name (Advanced Container Networking Services with L7 or "
        "FQDN policies): replicas that stream their weights then reach two names instead of any HTTPS address.",
        examples=[True],
    )


class RegistrySettings(_Described):
    """Where every image of the stack is pulled from, instead of the public registries."""

    login_server: Text = Field(
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}(:[0-9]{1,5})?$",
        max_length=253,
        description="The registry's host. Images have the same path in it as at home: vllm/vllm-openai, "
        "library/haproxy, nvidia/k8s-device-plugin.",
        examples=["myregistry.azurecr.io"],
    )
    id: Text | None = Field(
        default=None,
        pattern=r"(?i)^/subscriptions/[0-9a-f-]{36}/resourceGroups/[^/]{1,90}/providers"
        r"/Microsoft\.ContainerRegistry/registries/[a-z0-9]{5,50}$",
        description="Id of an Azure registry: the identity of the nodes is then granted to pull from it. Default: "
        "nothing is granted.",
        examples=[
            "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
            "/Microsoft.ContainerRegistry/registries/myregistry"
        ],
    )
    abac: bool = Field(
        default=False,
        description="Whether the registry's role assignment mode is `RBAC Registry + ABAC Repository Permissions`: it "
        "does not know AcrPull, and Container Registry Repository Reader is granted instead.",
        examples=[True],
    )


class KeyVaultSettings(_Described):
    """The team's own vault: the stack never holds what it keeps."""

    id: Text = Field(
        pattern=r"(?i)^/subscriptions/[0-9a-f-]{36}/resourceGroups/[^/]{1,90}/providers"
        r"/Microsoft\.KeyVault/vaults/[a-z][a-z0-9-]{1,22}[a-z0-9]$",
        description="Id of a vault that Azure RBAC opens. Identities of the stack are granted to read a secret each.",
        examples=[
            "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
            "/Microsoft.KeyVault/vaults/platform"
        ],
    )
    hf_token: Text | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9-]{1,127}$",
        description="Name of the secret that holds the Hugging Face token, in the place of hf-token; never the token.",
        examples=["hugging-face"],
    )
    certificate: Text | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9-]{1,127}$",
        description="Name of the certificate that the edge shows, in the place of edge.tls-secret. A renewed one is "
        "taken up by itself.",
        examples=["llm-example-com"],
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
        description="The public part of what tls-secret or the vault holds, in PEM: checked against host, and for its "
        "end, before anything is deployed. Never the private key.",
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
    key_vault: KeyVaultSettings | None = Field(
        default=None,
        description="A vault that holds the Hugging Face token, the edge's certificate, or both: docs/key-vault.md.",
        examples=[
            {
                "id": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
                "/Microsoft.KeyVault/vaults/platform",
                "hf-token": "hugging-face",
            }
        ],
    )
    existing_cluster: ExistingClusterSettings | None = Field(
        default=None,
        description="A cluster that is there already, instead of one of the stack's own: docs/existing-cluster.md. "
        "A stack that has a cluster of its own deletes it when this is set.",
        examples=[
            {
                "id": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
                "/Microsoft.ContainerService/managedClusters/platform"
            }
        ],
    )
    kubeconfig: bool = Field(
        default=False,
        description="Kubeconfig of an existing cluster that the stack may not touch in Azure; always encrypted: "
        "pulumi config set --secret aks-vllm:kubeconfig < kubeconfig. The program sees only whether there is one.",
    )
    benchmark: bool = Field(
        default=False,
        description="Measure what the models serve: a Job for each with vLLM's own benchmark, under the workload of "
        "the plan. `make benchmark` sets it for one update; docs/measure.md.",
        examples=[True],
    )
    benchmark_key: bool = Field(
        default=False,
        description="API key that the benchmark uses, where edge.keys has its SHA-256; always encrypted: "
        "pulumi config set --secret aks-vllm:benchmark-key. The program sees only whether there is one.",
    )
    registry: RegistrySettings | None = Field(
        default=None,
        description="A registry of your own, for every image of the stack: docs/registry.md. Default: the public ones.",
        examples=[{"login-server": "myregistry.azurecr.io"}],
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
    add_ons: (
        list[
            Literal[
                "azure-policy", "defender", "image-cleaner", "log-analytics", "managed-grafana", "managed-prometheus"
            ]
        ]
        | None
    ) = Field(
        default=None,
        description="Parts of AKS to switch on: azure-policy (Gatekeeper), defender (with log-analytics), "
        "image-cleaner (removes unused images with known holes, weekly), log-analytics (the control plane's logs, 30 "
        "days), managed-prometheus (metrics of models, edge and nodes), managed-grafana (draws them). Default: "
        "log-analytics in production, else none.",
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
