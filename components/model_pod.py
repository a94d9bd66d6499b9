"""The pod of one replica: an init container that fetches the weights, and vLLM."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
from pulumi_kubernetes import core, meta

from planning.capacity import POOL_LABEL
from planning.network_policy import ENGINE
from planning.placement import Way
from planning.plan import ModelPlan

#: The user of the vLLM image (vllm-project/vllm#40275): 2000, in group root as arbitrary-uid images are.
UID, GID = 2000, 0
HOME = "/home/vllm"
WEIGHTS = "/models"
TOKEN_DIRECTORY = "/var/run/secrets/huggingface"  # noqa: S105  a path, not a token
HTTP = "http"  # the named port


def pod(plan: ModelPlan, selector: Mapping[str, str], token_secret: pulumi.Output[str] | None) -> core.v1.PodSpecArgs:
    """The pod spec. `token_secret` names the Secret with the Hugging Face token; None where the model needs none."""
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
        security_context=core.v1.PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=UID,
            run_as_group=GID,
            fs_group=GID,
            fs_group_change_policy="OnRootMismatch",  # not a chown of every weight file at every start
            seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
        ),
        init_containers=[_download(plan, token_secret)],
        containers=[_server(plan)],
        volumes=_volumes(plan, token_secret),
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


def _download(plan: ModelPlan, token_secret: pulumi.Output[str] | None) -> core.v1.ContainerArgs:
    """Fetches the weights. Alone sees the token: it listens to nobody and is gone when vLLM serves."""
    mounts = [core.v1.VolumeMountArgs(name="weights", mount_path=WEIGHTS), *_scratch_mounts(plan)]
    if token_secret is not None:
        mounts.append(core.v1.VolumeMountArgs(name="token", mount_path=TOKEN_DIRECTORY, read_only=True))
    return core.v1.ContainerArgs(
        name="download",
        image=plan.download.image.reference,
        image_pull_policy="IfNotPresent",
        command=list(plan.download.command),
        env=_env(plan.download.env),
        security_context=_unprivileged(),
        volume_mounts=mounts,
    )


def _server(plan: ModelPlan) -> core.v1.ContainerArgs:
    startup = plan.startup
    return core.v1.ContainerArgs(
        name="vllm",
        image=plan.image.reference,
        image_pull_policy="IfNotPresent",
        command=list(plan.command),
        args=list(plan.args),
        env=_env(plan.env),
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
        security_context=_unprivileged(),
        volume_mounts=[
            core.v1.VolumeMountArgs(name="weights", mount_path=WEIGHTS, read_only=True),
            core.v1.VolumeMountArgs(name="shm", mount_path="/dev/shm"),  # noqa: S108  a mount point in the pod
            *_scratch_mounts(plan),
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


def _unprivileged() -> core.v1.SecurityContextArgs:
    """What Pod Security "restricted" asks of a container. The root stays writable: NVIDIA's CDI hook writes to it."""
    return core.v1.SecurityContextArgs(
        allow_privilege_escalation=False, capabilities=core.v1.CapabilitiesArgs(drop=["ALL"])
    )


def _env(variables: Mapping[str, str]) -> list[core.v1.EnvVarArgs]:
    return [core.v1.EnvVarArgs(name=name, value=value) for name, value in variables.items()]


def _scratch_mounts(plan: ModelPlan) -> list[core.v1.VolumeMountArgs]:
    """One volume, one limit, for compile caches, HOME (Triton and FlashInfer compile there) and temporary files."""
    mounts = {"cache": plan.env["VLLM_CACHE_ROOT"], "home": HOME, "tmp": "/tmp"}  # noqa: S108  mount points in the pod
    return [core.v1.VolumeMountArgs(name="scratch", sub_path=sub, mount_path=at) for sub, at in mounts.items()]


def _volumes(plan: ModelPlan, token_secret: pulumi.Output[str] | None) -> list[core.v1.VolumeArgs]:
    """Every emptyDir has a limit: without one a pod may fill the node's disk, or half its memory for /dev/shm."""
    sizes = plan.resources
    volumes = [
        _empty_dir("weights", sizes.weights_gib),
        _empty_dir("scratch", sizes.cache_gib),
        _empty_dir("shm", sizes.shm_gib, medium="Memory"),
    ]
    if token_secret is not None:
        token = core.v1.SecretVolumeSourceArgs(
            secret_name=token_secret,
            items=[core.v1.KeyToPathArgs(key="token", path="token")],
            default_mode=0o440,
        )
        volumes.append(core.v1.VolumeArgs(name="token", secret=token))
    return volumes


def _empty_dir(name: str, gib: int, medium: str | None = None) -> core.v1.VolumeArgs:
    return core.v1.VolumeArgs(
        name=name, empty_dir=core.v1.EmptyDirVolumeSourceArgs(size_limit=f"{gib}Gi", medium=medium)
    )
