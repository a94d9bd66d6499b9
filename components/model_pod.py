"""The pod of one replica: an init container that sees to the weights, and vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pulumi
from pulumi_kubernetes import core, meta

from components.model_access import ModelAccess
from planning.capacity import POOL_LABEL
from planning.network_policy import ENGINE
from planning.placement import Way
from planning.plan import ModelPlan
from planning.weight_source import HOME, PROGRAM, TOKEN_FILE, WEIGHTS, TaskPlan, WeightsPlan

#: The user of the vLLM image (vllm-project/vllm#40275): 2000, in group root as arbitrary-uid images are.
UID, GID = 2000, 0
HTTP = "http"  # the named port
#: What the Azure SDKs and the streamer call the storage account. Everything else they need, AKS's workload identity
#: webhook adds to pods with this label. https://learn.microsoft.com/azure/aks/workload-identity-overview
STORAGE_ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"
WORKLOAD_IDENTITY = {"azure.workload.identity/use": "true"}


def pod(
    plan: ModelPlan, selector: Mapping[str, str], access: ModelAccess, account: pulumi.Output[str] | None
) -> core.v1.PodSpecArgs:
    """The pod spec. `account` is the storage account to stream from; None where weights are downloaded."""
    return core.v1.PodSpecArgs(
        service_account_name=plan.name,
        automount_service_account_token=False,
        # A Service named "vllm" would inject VLLM_PORT=tcp://..., which vLLM refuses to start with.
        enable_service_links=False,
        node_selector=plan.node_selector,
        tolerations=[core.v1.TolerationArgs(key=key, operator="Exists") for key in plan.tolerated_taints],
        affinity=_affinity(plan),
        topology_spread_constraints=[_spread(plan, selector)],
        priority_class_name=plan.priority.name,
        termination_grace_period_seconds=plan.rollout.termination_grace_seconds,
        security_context=restricted(),
        init_containers=[task_container(plan.weights.before, access, account, weights=plan.weights.volume_gib > 0)],
        containers=[_server(plan, account)],
        volumes=[*_volumes(plan), *task_volumes(plan.weights.before, access)],
    )


def _spread(plan: ModelPlan, selector: Mapping[str, str]) -> core.v1.TopologySpreadConstraintArgs:
    """Replicas of a model on different nodes, as far as the plan says."""
    # Where replicas fill nodes up, a rule about the whole pool, which is always kept: without any, the scheduler's own
    # would spread them.
    per_node = plan.way is not Way.LARGEST_FIRST
    return core.v1.TopologySpreadConstraintArgs(
        topology_key="kubernetes.io/hostname" if per_node else POOL_LABEL,
        max_skew=1,
        # A model alone in its pool may go wherever there is room. Beside others it waits for its own place, also while
        # its node is drained: cordoned nodes count.
        when_unsatisfiable="DoNotSchedule" if plan.way is Way.EVENLY else "ScheduleAnyway",
        label_selector=meta.v1.LabelSelectorArgs(match_labels=selector),
    )


def _affinity(plan: ModelPlan) -> core.v1.AffinityArgs | None:
    """Where replicas fill nodes up, the fullest node with room is preferred: whole nodes stay free for larger ones."""
    if plan.way is not Way.LARGEST_FIRST:
        return None
    others = core.v1.PodAffinityTermArgs(
        topology_key="kubernetes.io/hostname",
        label_selector=meta.v1.LabelSelectorArgs(match_labels=ENGINE),
    )
    preferred = core.v1.WeightedPodAffinityTermArgs(weight=100, pod_affinity_term=others)
    return core.v1.AffinityArgs(
        pod_affinity=core.v1.PodAffinityArgs(preferred_during_scheduling_ignored_during_execution=[preferred])
    )


def restricted() -> core.v1.PodSecurityContextArgs:
    """What Pod Security "restricted" asks of a pod, with the image's own user."""
    return core.v1.PodSecurityContextArgs(
        run_as_non_root=True,
        run_as_user=UID,
        run_as_group=GID,
        fs_group=GID,
        fs_group_change_policy="OnRootMismatch",  # not a chown of every weight file at every start
        seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
    )


def task_container(
    task: TaskPlan, access: ModelAccess, account: pulumi.Output[str] | None, *, weights: bool = False
) -> core.v1.ContainerArgs:
    """A container that runs once. The token is mounted here and nowhere else: it listens to nobody."""
    mounts = [*scratch({"home": HOME, "tmp": "/tmp"}), read_only("program", PROGRAM)]  # noqa: S108  in the pod
    mounts += [core.v1.VolumeMountArgs(name="weights", mount_path=WEIGHTS)] if weights else []
    mounts += [read_only("token", TOKEN_FILE)] if _with_token(task, access) else []
    return core.v1.ContainerArgs(
        name=task.name,
        image=task.image.reference,
        image_pull_policy="IfNotPresent",
        command=list(task.command),
        env=[*_env(task.env), *_account(account)],
        # The last words of its log are why it failed: `kubectl describe` shows them.
        termination_message_policy="FallbackToLogsOnError",
        security_context=unprivileged(),
        volume_mounts=mounts,
    )


def task_volumes(task: TaskPlan, access: ModelAccess) -> list[core.v1.VolumeArgs]:
    """What `task_container` mounts, without scratch and weights."""
    program = core.v1.ConfigMapVolumeSourceArgs(name=access.weights_program, default_mode=0o444)
    volumes = [core.v1.VolumeArgs(name="program", config_map=program)]
    if _with_token(task, access) and access.token is not None:
        volumes.append(access.token.volume("token"))
    elif _with_token(task, access):
        token = core.v1.SecretVolumeSourceArgs(
            secret_name=access.token_secret,
            items=[core.v1.KeyToPathArgs(key="token", path=Path(TOKEN_FILE).name)],
            default_mode=0o440,
        )
        volumes.append(core.v1.VolumeArgs(name="token", secret=token))
    return volumes


def _with_token(task: TaskPlan, access: ModelAccess) -> bool:
    """A preview may go without the token; an update is refused before it comes here."""
    return task.sees_token and (access.token_secret is not None or access.token is not None)


def _server(plan: ModelPlan, account: pulumi.Output[str] | None) -> core.v1.ContainerArgs:
    startup, weights = plan.startup, plan.weights.volume_gib
    return core.v1.ContainerArgs(
        name="vllm",
        image=plan.image.reference,
        image_pull_policy="IfNotPresent",
        command=list(plan.command),
        args=list(plan.args),
        env=[*_env(plan.env), *_account(account)],
        ports=[core.v1.ContainerPortArgs(name=HTTP, container_port=plan.port)],
        startup_probe=_health(startup.startup_probe_period_seconds, startup.startup_probe_failure_threshold),
        # /health fails only when the engine is dead. A minute of patience: it also stalls under load.
        liveness_probe=_health(period_seconds=10, failure_threshold=6),
        readiness_probe=_health(period_seconds=5, failure_threshold=3),
        lifecycle=core.v1.LifecycleArgs(
            # vLLM answers new requests with 500 once it has seen SIGTERM, so the Service must forget the pod first.
            # The kubelet itself sleeps: the image needs no shell for it.
            pre_stop=core.v1.LifecycleHandlerArgs(sleep=core.v1.SleepActionArgs(seconds=plan.rollout.pre_stop_seconds))
        ),
        resources=_resources(plan),
        security_context=unprivileged(),
        volume_mounts=[
            *([core.v1.VolumeMountArgs(name="weights", mount_path=WEIGHTS, read_only=True)] if weights else []),
            core.v1.VolumeMountArgs(name="shm", mount_path="/dev/shm"),  # noqa: S108  a mount point in the pod
            *scratch({"cache": plan.env["VLLM_CACHE_ROOT"], "home": HOME, "tmp": "/tmp"}),  # noqa: S108  in the pod
        ],
    )


def _health(period_seconds: int, failure_threshold: int) -> core.v1.ProbeArgs:
    """GET /health: /v1/models would be 401 behind an API key, and neither answers before the engine is loaded."""
    return core.v1.ProbeArgs(
        http_get=core.v1.HTTPGetActionArgs(path="/health", port=HTTP),
        period_seconds=period_seconds,
        timeout_seconds=5,  # one second, the default, misfires when the CPU is busy
        failure_threshold=failure_threshold,
    )


def _resources(plan: ModelPlan) -> core.v1.ResourceRequirementsArgs:
    wanted = plan.resources
    fixed = {"nvidia.com/gpu": str(wanted.gpus), "memory": f"{wanted.memory_gib}Gi"}
    # No CPU limit: throttling stalls the scheduler loop that feeds the GPUs.
    return core.v1.ResourceRequirementsArgs(requests={**fixed, "cpu": str(wanted.cpu)}, limits=fixed)


def unprivileged() -> core.v1.SecurityContextArgs:
    """What Pod Security "restricted" asks of a container. The root stays writable: NVIDIA's CDI hook writes to it."""
    return core.v1.SecurityContextArgs(
        allow_privilege_escalation=False, capabilities=core.v1.CapabilitiesArgs(drop=["ALL"])
    )


def _env(variables: Mapping[str, str]) -> list[core.v1.EnvVarArgs]:
    return [core.v1.EnvVarArgs(name=name, value=value) for name, value in variables.items()]


def _account(name: pulumi.Output[str] | None) -> list[core.v1.EnvVarArgs]:
    return [] if name is None else [core.v1.EnvVarArgs(name=STORAGE_ACCOUNT, value=name)]


def scratch(places: Mapping[str, str]) -> list[core.v1.VolumeMountArgs]:
    """One volume, one limit, for compile caches, HOME (Triton and FlashInfer compile there) and temporary files."""
    return [core.v1.VolumeMountArgs(name="scratch", sub_path=sub, mount_path=at) for sub, at in places.items()]


def read_only(volume: str, file: str) -> core.v1.VolumeMountArgs:
    return core.v1.VolumeMountArgs(name=volume, mount_path=str(Path(file).parent), read_only=True)


def _volumes(plan: ModelPlan) -> list[core.v1.VolumeArgs]:
    """Every emptyDir has a limit: without one a pod may fill the node's disk, or half its memory for /dev/shm."""
    sizes = plan.resources
    return [
        *_weights(plan.weights),
        empty_dir("scratch", sizes.cache_gib),
        empty_dir("shm", sizes.shm_gib, medium="Memory"),
    ]


def _weights(plan: WeightsPlan) -> list[core.v1.VolumeArgs]:
    """On the node's OS disk; with a StorageClass, a claim that Kubernetes makes with the pod and removes with it."""
    if not plan.volume_gib:
        return []
    if plan.storage_class is None:
        return [empty_dir("weights", plan.volume_gib)]
    claim = core.v1.PersistentVolumeClaimSpecArgs(
        access_modes=["ReadWriteOnce"],
        storage_class_name=plan.storage_class,
        resources=core.v1.VolumeResourceRequirementsArgs(requests={"storage": f"{plan.volume_gib}Gi"}),
    )
    template = core.v1.PersistentVolumeClaimTemplateArgs(spec=claim)
    ephemeral = core.v1.EphemeralVolumeSourceArgs(volume_claim_template=template)
    return [core.v1.VolumeArgs(name="weights", ephemeral=ephemeral)]


def empty_dir(name: str, gib: int, medium: str | None = None) -> core.v1.VolumeArgs:
    """A volume that lives as long as its pod, and no larger than this."""
    return core.v1.VolumeArgs(
        name=name, empty_dir=core.v1.EmptyDirVolumeSourceArgs(size_limit=f"{gib}Gi", medium=medium)
    )
