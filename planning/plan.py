"""The StackPlan: everything the stack needs, decided and frozen, before anything is declared."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from planning import (
    benchmark,
    capacity,
    catalogue,
    edge,
    edge_problems,
    engine,
    existing_cluster,
    key_vault,
    monitoring,
    network,
    network_policy,
    parallelism,
    placement,
    registry,
    rollout,
    serving_plan,
    serving_rate,
    startup,
    weight_source,
)
from planning import cluster as cluster_plan
from planning.benchmark import BenchmarkPlan
from planning.capacity import CostPlan, GpuPoolPlan, QuotaNeed
from planning.catalogue import Image, Preset, VmSize
from planning.cluster import ClusterPlan
from planning.edge import EdgePlan
from planning.existing_cluster import ExistingClusterPlan
from planning.findings import Finding, InvalidStack, Problem, Severity
from planning.key_vault import KeyVaultPlan
from planning.memory import EngineOptions, LayoutError, MemoryPlan
from planning.monitoring import MonitoringPlan
from planning.names import Names, names
from planning.network_policy import NamePolicyPlan, NetworkPolicyPlan
from planning.parallelism import Layout
from planning.placement import Demand, Place, PoolPlacement, Way
from planning.registry import RegistryPlan
from planning.rollout import RolloutPlan
from planning.serving_plan import ServingPlan
from planning.serving_rate import Workload
from planning.startup import StartupBudget
from planning.weight_source import UploadPlan, WeightsPlan, WeightStorePlan
from planning.words import listed

if TYPE_CHECKING:
    from planning.settings import ModelSettings, Settings
    from planning.stack_file import Reading


@dataclass(frozen=True, kw_only=True)
class DevicePluginPlan:
    """The NVIDIA device plugin DaemonSet: without it a node is Ready but offers no nvidia.com/gpu."""

    image: Image
    node_label: tuple[str, str]  # only nodes with this label run it


@dataclass(frozen=True, kw_only=True)
class PodResources:
    """Requests and limits of one replica (requests equal limits, except cpu, which has no limit)."""

    gpus: int
    cpu: int
    memory_gib: int
    shm_gib: int  # /dev/shm, counts towards memory
    cache_gib: int  # size limit of the compile caches' volume


@dataclass(frozen=True, kw_only=True)
class Priority:
    """A PriorityClass: who goes first where GPUs are short."""

    name: str
    value: int


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model: one Deployment, one Service, one PodDisruptionBudget."""

    name: str  # the key in `models`, or "model" for the flat keys; a DNS-1123 label
    served_model_name: str  # what clients put into "model"
    preset: Preset
    revision: str | None  # commit on Hugging Face; None is a step still to do in production
    layout: Layout
    memory: MemoryPlan
    asked: EngineOptions  # what the settings say about the memory; None is vLLM's default
    serving: ServingPlan
    image: Image
    command: tuple[str, ...]  # exec form, so that vLLM is PID 1 and gets SIGTERM
    args: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    weights: WeightsPlan
    resources: PodResources
    node_selector: Mapping[str, str]
    tolerated_taints: tuple[str, ...]  # keys, tolerated with operator Exists
    way: Way  # how its replicas find their nodes
    priority: Priority
    startup: StartupBudget
    rollout: RolloutPlan
    config_hash: str  # pod template annotation: changes when anything the engine reads changes


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """The whole stack. Components receive parts of it and declare them."""

    stack: str
    environment: str  # production | development
    namespace: str
    needs_hf_token: bool  # a gated preset is served
    has_hf_token: bool
    key_vault: KeyVaultPlan | None  # None: no vault has the token, or nothing needs it
    names: Names
    cluster: ClusterPlan | ExistingClusterPlan
    gpu_pools: tuple[GpuPoolPlan, ...]
    placements: tuple[PoolPlacement, ...]  # of gpu_pools, in their order
    device_plugin: DevicePluginPlan | None  # None: the cluster has one
    models: tuple[ModelPlan, ...]
    edge: EdgePlan
    registry: RegistryPlan | None  # None: images come from the public registries
    network_policies: tuple[NetworkPolicyPlan, ...]
    name_policies: tuple[NamePolicyPlan, ...]
    monitoring: MonitoringPlan | None  # None: nobody fetches metrics, as far as the stack knows
    weight_store: WeightStorePlan | None  # None: every model is downloaded by its replicas
    uploads: tuple[UploadPlan, ...]
    benchmarks: tuple[BenchmarkPlan, ...]  # none unless asked for
    cost: CostPlan
    quota: tuple[QuotaNeed, ...]
    findings: tuple[Finding, ...]

    @property
    def pools_to_make(self) -> tuple[GpuPoolPlan, ...]:
        """Those that are the stack's: where a kubeconfig is all that is known, the nodes are there already."""
        there = isinstance(self.cluster, ExistingClusterPlan) and self.cluster.id is None
        return () if there else self.gpu_pools

    @property
    def priorities(self) -> tuple[Priority, ...]:
        """Each once."""
        return tuple(dict.fromkeys(model.priority for model in self.models))


NAMESPACE = "vllm"
PORT = 8000  # vLLM's own

#: Of a node's memory and cores, what pods of one model may ask for: the rest is the system's, the kubelet's and the
#: DaemonSets'. https://learn.microsoft.com/azure/aks/node-resource-reservations
MEMORY_SHARE, CPU_SHARE = 0.84, 5 / 6
MEMORY_GIB_PER_GPU = 100  # pinned buffers, and the page cache while weights are read
SHM_GIB = 16  # NCCL and the tensor parallel workers
CACHE_GIB = 30  # compile caches, and what a streamed model has beside its weights
NODE_GIB = 120  # of the OS disk: system 60, two versions of the engine's image at 28.6 GB unpacked
DISK_SHARE = 0.85  # the kubelet removes images, then pods, above it

CHOICES_SHOWN = 16  # in one message

#: AKS's own default, and the most it allows: https://learn.microsoft.com/azure/aks/upgrade-aks-node-pools-rolling
DRAIN_MINUTES, MAX_DRAIN_MINUTES = 30, 1440
DRAIN_SLACK_MINUTES = 5  # evictions are tried every few seconds, and pods of others leave too

#: https://learn.microsoft.com/azure/aks/spot-node-pool
SPOT_NOTICE_SECONDS = 30

#: Above 0, which pods of no class have: a guest that tolerates the taint of GPU nodes gives way to a model.
PRIORITY = 1_000_000


def read_and_decide(reading: Reading, today: date | None = None) -> StackPlan:
    """The plan of what was read. Raises InvalidStack with the settings' problems and the plan's.

    `today`: a certificate's end is told; None leaves that out.
    """
    problems = list(reading.problems)
    if reading.settings is not None:
        try:
            plan = decide(reading.settings, stack=reading.stack, source=reading.source, today=today)
        except InvalidStack as invalid:
            known = {problem.key for problem in problems}
            problems += [
                replace(problem, source=reading.source_of(problem.key))
                for problem in invalid.problems
                # What lacks something that was left out as wrong is not told twice.
                if not any(key == problem.key or key.startswith(f"{problem.key}.") for key in known)
            ]
        else:
            if not problems:
                return plan
    raise InvalidStack(problems)


def decide(settings: Settings, *, stack: str, source: str, today: date | None = None) -> StackPlan:
    """Every number and string of the stack. `source` names the file in messages. Raises InvalidStack with all problems.

    Pure: reads nothing but `presets/`.
    """
    problems: list[Problem] = []
    drafts = [draft for name in settings.models if (draft := _draft(settings, name, source, problems)) is not None]
    existing = existing_cluster.existing(settings)
    pools = _pools(settings, drafts, source, problems)
    streams = any(
        weight_source.source(model.weights, settings.environment) == weight_source.AZURE_BLOB
        for model in settings.models.values()
    )
    # Of a cluster of its own the stack sees to it that names are filtered.
    by_name = streams and (existing is None or existing.fqdn_policies)
    cluster = own = None
    if existing is None:
        cluster = own = cluster_plan.cluster(settings, stack, policies_by_name=by_name)
        problems += network.problems(settings, nodes=cluster_plan.nodes(own, [*pools.values()]), source=source)
    else:
        cluster = existing_cluster.plan(settings, existing, stack)
        problems += existing_cluster.problems(settings, source)
        if existing.id is None:
            pools = {size: existing_cluster.found(pool, existing) for size, pool in pools.items()}
    namespace = existing.namespace if existing else NAMESPACE
    problems += cluster_plan.problems(settings, source)
    problems += key_vault.problems(settings, source)
    problems += monitoring.problems(settings, source) if existing is None else ()
    problems += registry.problems(settings, source, own_cluster=existing is None)
    problems += edge_problems.problems(settings.edge, source, vaulted=_vaulted(settings))
    streamed = [draft.name for draft in drafts if _streamed(settings, draft)]
    if len(streamed) > weight_source.FEDERATED_CREDENTIALS_MAX:
        limit = f"are more than {weight_source.FEDERATED_CREDENTIALS_MAX} models that stream their weights: so many "
        limit += "service accounts may share an identity of Azure"
        remedy = "divide them over two stacks, or set weights: {source: hugging-face} for some"
        problems.append(Problem(key="aks-vllm:models", value=len(streamed), limit=limit, source=source, remedy=remedy))
    clash = benchmark.objections(
        benchmark=settings.benchmark, keys=bool(settings.edge.keys), has_key=settings.benchmark_key
    )
    problems += [
        Problem(key=f"aks-vllm:{key}", value=value, limit=limit, source=source, remedy=remedy)
        for key, value, limit, remedy in clash
    ]
    if problems or not pools:
        raise InvalidStack(problems)
    demands = {size: _demands(drafts, size) for size in pools}
    models = tuple(_model(settings, draft, pools[draft.vm.name], demands[draft.vm.name], namespace) for draft in drafts)
    gpu_pools = tuple(
        _with_drain(pool, [m for m in models if m.layout.vm_size == pool.vm_size], settings, source, problems)
        for pool in pools.values()
    )
    if problems:
        raise InvalidStack(problems)
    placements = tuple(
        placement.pool_placement(pool.name, pool.gpus_per_node, pool.count, demands[pool.vm_size]) for pool in gpu_pools
    )
    cost, cost_findings = capacity.cost(gpu_pools, settings.location)
    needs_token = any(model.preset.gated for model in models)
    grace = max(model.rollout.termination_grace_seconds for model in models)
    grace = max(cluster_plan.GRACEFUL_TERMINATION_SECONDS, grace)
    if own is not None:
        cluster = own = replace(own, max_graceful_termination_seconds=grace)
    device_plugin = DevicePluginPlan(
        image=registry.image("device-plugin", settings.registry),
        node_label=("kubernetes.azure.com/accelerator", "nvidia"),
    )
    front = edge.decide(
        settings.edge,
        models,
        flat=settings.flat,
        namespace=namespace,
        image=registry.image("haproxy", settings.registry),
        dns_service_ip=own.network.dns_service_ip if own else None,
        system_taints=cluster_plan.SYSTEM_TAINTS,
        vaulted=_vaulted(settings),
    )
    measured = benchmark.plan_benchmarks(models, front, namespace) if settings.benchmark else ()
    findings = [
        *benchmark.findings(measured),
        *_steps(settings, models, stack),
        *(replace(finding, subject=model.name) for model in models for finding in model.memory.findings),
        *(finding for draft in drafts for finding in engine.findings(draft.all_options, draft.name)),
        *(finding for model in models for finding in serving_plan.findings(model.serving, model.name)),
        *_interruptions(settings, models),
        *_crowded(gpu_pools, demands),
        *_idle(models, gpu_pools, settings.location),
        *_disk(models, gpu_pools, placements),
        *weight_source.findings(models, settings.environment),
        *cost_findings,
        *_about_the_cluster(settings, cluster, gpu_pools, streams=streams, grace_seconds=grace),
        *_regions(gpu_pools, settings.location),
        *edge.findings(front, settings.environment),
        *edge_problems.findings(settings.edge, today),
    ]
    plan = StackPlan(
        stack=stack,
        environment=settings.environment,
        namespace=namespace,
        needs_hf_token=needs_token,
        has_hf_token=settings.hf_token,
        key_vault=key_vault.plan(settings, models, weight_source.uploads(models)),
        names=names(stack),
        cluster=cluster,
        gpu_pools=gpu_pools,
        placements=placements,
        device_plugin=device_plugin if existing is None or existing_cluster.wants_device_plugin(existing) else None,
        models=models,
        edge=front,
        registry=None,
        network_policies=network_policy.network_policies(
            engine_port=PORT,
            edge_port=front.port,
            edge_metrics_port=front.admin_port,
            downloading=[model.name for model in models if model.weights.needs_internet_egress or not by_name],
            uploads=bool(weight_source.uploads(models)),
            benchmark=settings.benchmark,
        ),
        name_policies=network_policy.name_policies(
            [model.name for model in models if by_name and not model.weights.needs_internet_egress]
        ),
        monitoring=monitoring.plan(settings),
        weight_store=weight_source.store(models),
        uploads=weight_source.uploads(models),
        benchmarks=measured,
        cost=cost,
        quota=_quota(cluster, gpu_pools),
        findings=tuple(findings),
    )
    if settings.registry is None:
        return plan
    mirror = registry.decide(settings.registry, plan)
    said = registry.findings(settings.registry, mirror, own_cluster=existing is None)
    return replace(plan, registry=mirror, findings=(*plan.findings, *said))


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A model before its pool is known."""

    name: str
    settings: ModelSettings
    preset: Preset
    vm: VmSize
    layout: Layout
    memory: MemoryPlan
    options: Mapping[str, Any]

    @property
    def all_options(self) -> dict[str, Any]:
        """The preset's and the stack's, which win."""
        return {**self.preset.options, **self.options}


def _draft(settings: Settings, name: str, source: str, problems: list[Problem]) -> _Draft | None:
    """One model's preset, size, layout and memory; None, with problems, where one of them does not stand."""
    model = settings.models[name]
    before = len(problems)

    def refuse(key: str, value: object, limit: str, remedy: str) -> None:
        path = settings.key(name, key)
        problems.append(Problem(key=path, value=value, limit=limit, source=source, remedy=remedy))

    prefix = settings.key(name, "vllm")
    problems += engine.check(model.vllm, prefix=prefix, source=source)
    bad = {problem.key.removeprefix(f"{prefix}.") for problem in problems[before:]}
    options = engine.normalise({key: value for key, value in model.vllm.items() if key not in bad})
    if model.max_model_len is not None and "max-model-len" in options:
        limit = f"is given a second time: {settings.key(name, 'max-model-len')} is {model.max_model_len}"
        refuse("vllm.max-model-len", options.pop("max-model-len"), limit, "keep one of the two")

    for key, value, limit, remedy in weight_source.objections(model.weights, settings.environment, options):
        refuse(key, value, limit, remedy)

    preset = vm = None
    try:
        preset = catalogue.preset(model.preset)
    except KeyError:
        refuse("preset", model.preset, "is not a preset", _choice(model.preset, catalogue.preset_names()))
    try:
        vm = catalogue.vm_size(model.vm_size or (preset.default_vm_size if preset else ""))
    except KeyError:
        if model.vm_size is not None:
            limit = "is not a VM size with known GPUs"
            refuse("vm-size", model.vm_size, limit, _choice(model.vm_size, catalogue.vm_size_names()))
    if preset is None or vm is None:
        return None
    if preset.needs_several_nodes:
        weights = preset.architecture.checkpoint_bytes / (1 << 30)
        limit = f"needs several nodes: {weights:,.0f} GiB of weights leave no VM size room for a KV cache of use, "
        limit += "and a replica that spans nodes is not built yet"
        refuse("preset", preset.name, limit, "choose a model that `make presets` lists with a VM size")
        return None
    workload, all_options = _workload(model), {**preset.options, **options}
    try:
        layout, memory = _layout(
            preset.name,
            vm.name,
            model.replicas,
            options.get("tensor-parallel-size"),
            options.get("pipeline-parallel-size"),
            _engine_options(options, model.max_model_len),
            workload if workload and not serving_rate.not_modelled(preset.architecture, vm.gpu, all_options) else None,
        )
    except LayoutError as error:
        key = "vllm.max-model-len" if error.key == "max-model-len" and model.max_model_len is None else error.key
        if settings.key(name, key) not in {problem.key for problem in problems}:
            refuse(key, error.value, error.limit, error.remedy)
        return None
    if workload is not None:
        length = workload.input_tokens + workload.output_tokens
        if length > memory.max_model_len:
            shown = f"{workload.input_tokens} + {workload.output_tokens} tokens"
            limit = f"prompt and answer are {length} tokens, the context is {memory.max_model_len}"
            longest = min(memory.longest_max_model_len, preset.architecture.native_context)
            raised = f"set max-model-len to {length} or more, or " if longest >= length else ""
            refuse("workload", shown, limit, f"{raised}shorten them")
    planned = {**preset.options, **options}
    problems += engine.check_planned(
        planned, architecture=preset.architecture, memory=memory, prefix=prefix, source=source
    )
    if len(problems) > before:
        return None
    return _Draft(name=name, settings=model, preset=preset, vm=vm, layout=layout, memory=memory, options=options)


def _workload(model: ModelSettings) -> Workload | None:
    """The load as the formulas take it."""
    return Workload(**model.workload.model_dump()) if model.workload else None


def _serving(draft: _Draft, price_per_hour: float | None, model: str) -> ServingPlan:
    """What the decided layout serves."""
    options = _engine_options(draft.options, draft.memory.max_model_len)
    stages = draft.layout.pipeline_parallel_size
    why = serving_rate.not_modelled(
        draft.preset.architecture, draft.vm.gpu, draft.all_options, pipeline_parallel_size=stages
    )
    load = _workload(draft.settings)
    return _cached_serving(
        draft.preset.name, draft.layout, draft.settings.replicas, options, load, why, model, price_per_hour
    )


@lru_cache(maxsize=1024)
def _cached_serving(
    preset: str,
    layout: Layout,
    asked_replicas: int | None,
    options: EngineOptions,
    workload: Workload | None,
    not_modelled: str,
    model: str,
    price_per_hour: float | None,
) -> ServingPlan:
    """Models that are alike share the answer."""
    return serving_plan.serving_plan(
        catalogue.preset(preset).architecture,
        catalogue.vm_size(layout.vm_size),
        layout,
        options,
        asked_replicas=asked_replicas,
        workload=workload,
        not_modelled=not_modelled,
        model=model,
        price_per_hour=price_per_hour,
    )


@lru_cache(maxsize=1024)
def _layout(
    preset: str,
    vm: str,
    replicas: int | None,
    tensor: int | None,
    stages: int | None,
    options: EngineOptions,
    workload: Workload | None,
) -> tuple[Layout, MemoryPlan]:
    """Models that are alike share the answer. Raises LayoutError."""
    return parallelism.choose_layout(
        catalogue.preset(preset).architecture,
        catalogue.vm_size(vm),
        replicas=replicas,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        options=options,
        workload=workload,
    )


_MEMORY_OPTIONS = {field.name.replace("_", "-"): field.name for field in fields(EngineOptions)}


def _engine_options(options: Mapping[str, Any], max_model_len: int | None) -> EngineOptions:
    chosen: dict[str, Any] = {field: options.get(key) for key, field in _MEMORY_OPTIONS.items()}
    return EngineOptions(**chosen if max_model_len is None else {**chosen, "max_model_len": max_model_len})


def _pools(
    settings: Settings, drafts: Sequence[_Draft], source: str, problems: list[Problem]
) -> dict[str, GpuPoolPlan]:
    """One pool for each VM size in use, by VM size."""
    pools, existing = {}, existing_cluster.existing(settings)
    for vm in {draft.vm.name: draft.vm for draft in drafts}.values():
        try:
            pools[vm.name] = capacity.gpu_pool(
                vm,
                _demands(drafts, vm.name),
                nodes=settings.gpu_nodes,
                subnet=settings.network.subnet_id or "",
                owner=existing.namespace if existing else "",
                drain_timeout_minutes=DRAIN_MINUTES,  # known only when the models are
            )
        except LayoutError as error:
            problems.append(
                Problem(
                    key=f"aks-vllm:{error.key}",
                    value=error.value,
                    limit=error.limit,
                    source=source,
                    remedy=error.remedy,
                )
            )
    return pools


def _demands(drafts: Sequence[_Draft], vm_size: str) -> list[Demand]:
    """The replicas that share a pool."""
    return [
        Demand(name=draft.name, gpus=draft.layout.gpus_per_replica, replicas=draft.layout.replicas)
        for draft in drafts
        if draft.vm.name == vm_size
    ]


def _priority(place: Place, gpus: int, namespace: str) -> Priority:
    """One for all models, or the higher the more GPUs a replica needs. Its name must be one in the whole cluster."""
    if place.way is Way.LARGEST_FIRST:
        return Priority(name=f"{namespace}-{gpus}-gpus", value=PRIORITY + gpus)
    return Priority(name=namespace, value=PRIORITY)


def _model(
    settings: Settings, draft: _Draft, pool: GpuPoolPlan, demands: Sequence[Demand], namespace: str
) -> ModelPlan:
    """Everything about one model, now that its pool is known; `demands` are all that share it."""
    preset, layout = draft.preset, draft.layout
    image = registry.image("vllm", settings.registry)
    revision = draft.settings.revision or preset.revision
    place = placement.places(pool.gpus_per_node, pool.count, demands)[draft.name]
    answer = rollout.longest_answer_seconds(settings.max_answer_tokens, draft.memory.max_model_len)
    drain = rollout.termination_grace_seconds(answer)
    streamed = _streamed(settings, draft)
    budget = startup.budget(preset.architecture, draft.vm, layout, drain_seconds=drain, streamed=streamed)
    update = rollout.plan_rollout(layout, place=place, nodes=pool.count, startup=budget, answer_seconds=answer)
    weights = weight_source.plan_weights(
        draft.settings.weights,
        environment=settings.environment,
        preset=preset,
        revision=revision,
        image=image,
        startup=budget,
        gpus_per_replica=layout.gpus_per_replica,
    )
    served = draft.options.get("served-model-name", preset.name)
    served_name = str(served[0] if isinstance(served, list | tuple) and served else served)
    args = engine.arguments(
        options={**weights.options, **draft.options},
        model_path=weights.model_path,
        served_model_name=served_name,
        port=PORT,
        layout=layout,
        memory=draft.memory,
        shutdown_timeout_seconds=update.shutdown_timeout_seconds,
        preset=preset,
    )
    environment = engine.environment(startup=budget)
    return ModelPlan(
        name=draft.name,
        served_model_name=served_name,
        preset=preset,
        revision=revision,
        layout=layout,
        memory=draft.memory,
        asked=_engine_options(draft.options, draft.settings.max_model_len),
        serving=_serving(draft, draft.vm.price_per_hour.get(settings.location), served_name),
        image=image,
        command=engine.COMMAND,
        args=args,
        env=environment,
        port=PORT,
        weights=weights,
        resources=_resources(draft),
        node_selector=pool.labels,
        tolerated_taints=tuple(taint.partition("=")[0] for taint in pool.taints),
        way=place.way,
        priority=_priority(place, layout.gpus_per_replica, namespace),
        startup=budget,
        rollout=update,
        config_hash=_hash(image.reference, engine.COMMAND, args, environment, asdict(weights)),
    )


def _streamed(settings: Settings, draft: _Draft) -> bool:
    return weight_source.source(draft.settings.weights, settings.environment) == weight_source.AZURE_BLOB


def _resources(draft: _Draft) -> PodResources:
    """The share of a node that a replica's GPUs are of the node's."""
    vm, gpus = draft.vm, draft.layout.gpus_per_replica
    share = gpus / vm.gpus
    # What vLLM puts into host memory on request, in GiB: weights for each GPU, KV cache for all of them.
    offloaded = gpus * float(draft.options.get("cpu-offload-gb") or 0)
    offloaded += float(draft.options.get("kv-offloading-size") or 0)
    return PodResources(
        gpus=gpus,
        cpu=max(1, int(vm.vcpus * share * CPU_SHARE)),
        memory_gib=min(int(MEMORY_GIB_PER_GPU * gpus + offloaded), int(vm.memory_gib * share * MEMORY_SHARE)),
        shm_gib=SHM_GIB,
        cache_gib=CACHE_GIB,
    )


def _hash(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_drain(
    pool: GpuPoolPlan, models: Sequence[ModelPlan], settings: Settings, source: str, problems: list[Problem]
) -> GpuPoolPlan:
    """The pool with time for its longest drain: its models' replicas are evicted side by side."""
    slowest = max(models, key=lambda model: model.rollout.drain_limit_seconds)
    minutes = math.ceil(slowest.rollout.drain_limit_seconds / 60) + DRAIN_SLACK_MINUTES
    if minutes > MAX_DRAIN_MINUTES:
        answer = math.ceil(slowest.rollout.shutdown_timeout_seconds / 60)
        problems.append(
            Problem(
                key="aks-vllm:max-answer-tokens",
                value=settings.max_answer_tokens,
                limit=f"emptying a node of {slowest.name}, whose last answers may take {answer} minutes each time, may "
                f"take {minutes} minutes, and AKS gives up after {MAX_DRAIN_MINUTES}",
                source=source,
                remedy="set it to what clients really ask for (max_tokens), for example 8192",
            )
        )
    return replace(pool, drain_timeout_minutes=min(max(DRAIN_MINUTES, minutes), MAX_DRAIN_MINUTES))


def _quota(cluster: ClusterPlan | ExistingClusterPlan, pools: Sequence[GpuPoolPlan]) -> tuple[QuotaNeed, ...]:
    """For the nodes that the stack makes."""
    if isinstance(cluster, ExistingClusterPlan):
        return capacity.quota_needs(pools) if cluster.id else ()
    system = cluster.system_pool
    vcpus = system.count * cluster_plan.SYSTEM_VCPUS
    own = QuotaNeed(family=cluster_plan.SYSTEM_FAMILY, vcpus=vcpus, vm_size=system.vm_size, nodes=system.count)
    return (*capacity.quota_needs(pools), own)


def _about_the_cluster(
    settings: Settings,
    cluster: ClusterPlan | ExistingClusterPlan,
    pools: Sequence[GpuPoolPlan],
    *,
    streams: bool,
    grace_seconds: int,
) -> Iterator[Finding]:
    asked = existing_cluster.existing(settings)
    if isinstance(cluster, ExistingClusterPlan) and asked is not None:
        yield from existing_cluster.findings(
            cluster, asked, pools, environment=settings.environment, streams=streams, grace_seconds=grace_seconds
        )
    elif isinstance(cluster, ClusterPlan):
        yield from cluster_plan.findings(cluster)
        yield from monitoring.findings(monitoring.plan(settings))


def _vaulted(settings: Settings) -> bool:
    """Whether the edge's certificate is in a vault."""
    return settings.key_vault is not None and settings.key_vault.certificate is not None


def _steps(settings: Settings, models: Sequence[ModelPlan], stack: str) -> Iterator[Finding]:
    """What is still to do: a token for gated models everywhere, pins in production."""
    gated = sorted({model.preset.model_id for model in models if model.preset.gated})
    if gated and not settings.hf_token and not (settings.key_vault and settings.key_vault.hf_token):
        yield Finding(
            severity=Severity.STEP,
            subject="stack",
            message=f"{listed(gated)} can be read only with a Hugging Face token, and aks-vllm:hf-token is not set.",
            remedy="Accept the licence on huggingface.co, then run "
            f"`pulumi config set --secret aks-vllm:hf-token --stack {stack}`.",
        )
    for model in models if settings.environment != "production" else ():
        if model.weights.source == weight_source.AZURE_BLOB and model.revision is None:
            yield Finding(
                severity=Severity.STEP,
                subject=model.name,
                message="What is uploaded once must be one commit, and the model's commit is not known yet.",
                remedy=f"Run `make pin PRESET={model.preset.name}`, or set `aks-vllm:revision`.",
            )
    if settings.environment != "production":
        return
    for model in {model.preset.name: model for model in models}.values():
        unpinned = ["the model's commit"] if model.revision is None else []
        unpinned += model.preset.unknown
        unpinned += [f"the digest of {model.image.reference}"] if model.image.digest is None else []
        if unpinned:
            yield Finding(
                severity=Severity.STEP,
                subject=model.name,
                message=f"Production runs what was reviewed; not known yet: {listed(unpinned)}.",
                remedy=f"Run `make pin PRESET={model.preset.name}` and commit what it fills in.",
            )


def _interruptions(settings: Settings, models: Sequence[ModelPlan]) -> Iterator[Finding]:
    """Outages that an update or a node drain would be."""
    severity = Severity.WARNING if settings.environment == "production" else Severity.NOTE
    if settings.gpu_nodes.spot:
        yield Finding(
            severity=severity,
            subject="stack",
            message=f"Azure takes a spot node back with {SPOT_NOTICE_SECONDS} seconds' notice: answers under way that "
            "need longer are cut off, and the replicas on it start again when there is a node.",
            remedy="Set gpu-nodes.spot to false for anybody who waits for an answer.",
        )
    for model in models:
        if model.rollout.update_outage_minutes:
            remedy = "Set replicas to 2: one then keeps serving."
            yield Finding(
                severity=severity, subject=model.name, message=model.rollout.update_consequence, remedy=remedy
            )
        if model.rollout.drain_outage_minutes:
            remedy = "Two nodes with a replica each keep serving, at the price of a node: raise replicas or gpu-nodes."
            if model.way is Way.LARGEST_FIRST:
                remedy = "Give the models that share its nodes replicas of the same size."
            yield Finding(severity=severity, subject=model.name, message=model.rollout.drain_consequence, remedy=remedy)


def _crowded(pools: Iterable[GpuPoolPlan], demands: Mapping[str, Sequence[Demand]]) -> Iterator[Finding]:
    """Pools whose models fit only because larger replicas go first."""
    for pool in pools:
        sharing = demands[pool.vm_size]
        ways = {
            nodes: placement.way(pool.gpus_per_node, nodes, sharing)
            for nodes in range(pool.count, pool.count + len(sharing) + 1)
        }
        if ways[pool.count] is not Way.LARGEST_FIRST:
            continue
        largest = max(each.gpus for each in sharing)
        above = listed([each.name for each in sharing if each.gpus == largest])
        roomy = next((nodes for nodes, way in ways.items() if way is not Way.LARGEST_FIRST), None)
        more = f", or set gpu-nodes.min to {roomy}, which leaves room for all" if roomy else ""
        yield Finding(
            severity=Severity.WARNING,
            subject="stack",
            message=f"Models with replicas of different sizes fill pool {pool.name} to the last node: a replica of "
            f"{above} that has lost its node, by a drain or a failure, takes the GPUs of smaller ones.",
            remedy=f"Give the models the same vllm.tensor-parallel-size{more}.",
        )


def _idle(models: Sequence[ModelPlan], pools: Iterable[GpuPoolPlan], location: str) -> Iterator[Finding]:
    """GPUs that are paid for and serve nobody."""
    for pool in pools:
        gpus = pool.count * pool.gpus_per_node
        idle = gpus - sum(
            model.layout.gpus_per_replica * model.layout.replicas
            for model in models
            if model.layout.vm_size == pool.vm_size
        )
        price = catalogue.vm_size(pool.vm_size).price_per_hour.get(location)
        if idle > 0:
            cost = "" if price is None else f", ${price * idle / pool.gpus_per_node:,.2f} of the price of an hour"
            yield Finding(
                severity=Severity.WARNING,
                subject="stack",
                message=f"{idle} of the {gpus} GPUs of pool {pool.name} serve no model{cost}.",
                remedy="Raise replicas or vllm.tensor-parallel-size, or choose a smaller vm-size.",
            )


def _disk(
    models: Sequence[ModelPlan], pools: Iterable[GpuPoolPlan], placements: Iterable[PoolPlacement]
) -> Iterator[Finding]:
    """Nodes whose disk the replicas' weights and caches would fill."""
    each = {
        model.name: model.resources.cache_gib + (0 if model.weights.storage_class else model.weights.volume_gib)
        for model in models
    }
    for pool, placed in zip(pools, placements, strict=True):
        planned = [sum(each[name] * held for name, held in node.replicas.items()) for node in placed.nodes]
        alone = [
            each[model.name] * min(model.layout.replicas, model.layout.replicas_per_node)
            for model in models
            if model.layout.vm_size == pool.vm_size
        ]
        fullest = max(planned + alone)
        usable = int(pool.os_disk_size_gb * DISK_SHARE)
        if NODE_GIB + fullest > usable:
            yield Finding(
                severity=Severity.WARNING,
                subject="stack",
                message=f"Images, weights and caches may take {NODE_GIB + fullest} GiB of a node of pool {pool.name}, "
                f"which has {usable} before the kubelet evicts pods.",
                remedy="Use fewer replicas on a node (a larger vllm.tensor-parallel-size), or another vm-size.",
            )


def _regions(pools: Iterable[GpuPoolPlan], location: str) -> Iterator[Finding]:
    """Regions in which nobody is known to have had the size."""
    for vm in (catalogue.vm_size(pool.vm_size) for pool in pools):
        if location not in (*vm.regions_seen, *vm.price_per_hour):
            yield Finding(
                severity=Severity.WARNING,
                subject="stack",
                message=f"{vm.name} has not been seen in {location}; it has in {listed(vm.regions_seen)}.",
                remedy="`make preflight` asks Azure whether your subscription may have it there.",
            )


def _choice(value: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    choices = "`make presets` lists them" if len(known) > CHOICES_SHOWN else f"The choices are {', '.join(known)}"
    return (f"did you mean {near[0]}? " if near else "") + choices
