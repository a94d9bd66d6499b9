"""Jobs that measure what the models serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi_kubernetes import batch, core, meta

from components.model_access import POD, ModelAccess
from components.model_pod import empty_dir, read_only, restricted, scratch, task_container, task_volumes, unprivileged
from planning.benchmark import KEY_VARIABLE, MEASURED, PROGRAM, BenchmarkPlan, outcome
from planning.network_policy import BENCHMARK
from planning.weight_source import HOME, WEIGHTS

#: For a tokenizer, and for what Python writes.
VOLUME_GIB = 2


@dataclass(frozen=True, kw_only=True)
class BenchmarksArgs:
    """The Jobs, where they live, their key for the edge, and what must serve before they begin."""

    plans: Sequence[BenchmarkPlan]
    access: ModelAccess
    key: pulumi.Output[str] | None
    after: Sequence[pulumi.Resource]


class Benchmarks(pulumi.ComponentResource):
    """A Job for each model, which Pulumi waits for; `outcomes`, by model, are the stack's output."""

    outcomes: dict[str, pulumi.Output[Mapping[str, Any]]]

    def __init__(self, name: str, args: BenchmarksArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Benchmarks", name, None, opts)
        labels = {**BENCHMARK, "app.kubernetes.io/managed-by": "pulumi"}
        unnamed = meta.v1.ObjectMetaArgs(namespace=args.access.namespace, labels=labels)
        program = core.v1.ConfigMap(
            f"{name}-program",
            metadata=unnamed,
            data={Path(PROGRAM).name: (POD / Path(PROGRAM).name).read_text()},
            opts=pulumi.ResourceOptions(parent=self),
        )
        key = None
        if args.key is not None:
            key = core.v1.Secret(
                f"{name}-key",
                metadata=unnamed,
                string_data={"key": args.key},
                opts=pulumi.ResourceOptions(parent=self),
            )
        self.outcomes = {}
        for plan in args.plans:
            limit = f"{plan.pulumi_timeout_minutes}m"
            job = batch.v1.Job(
                f"{name}-{plan.model}",
                metadata=meta.v1.ObjectMetaArgs(name=plan.job, namespace=args.access.namespace, labels=labels),
                spec=batch.v1.JobSpecArgs(
                    backoff_limit=0,  # a second attempt would measure a model that the first one has warmed up
                    active_deadline_seconds=plan.deadline_seconds,
                    template=core.v1.PodTemplateSpecArgs(
                        metadata=meta.v1.ObjectMetaArgs(labels=labels), spec=_pod(plan, args.access, program, key)
                    ),
                ),
                opts=pulumi.ResourceOptions(
                    parent=self,
                    depends_on=args.after,
                    custom_timeouts=pulumi.CustomTimeouts(create=limit, update=limit),
                ),
            )
            self.outcomes[plan.model] = job.metadata.annotations.apply(
                lambda notes, plan=plan: outcome(plan.predicted, plan.requests, (notes or {}).get(MEASURED, ""))
            )
        self.register_outputs({"outcomes": self.outcomes})


def _pod(
    plan: BenchmarkPlan, access: ModelAccess, program: core.v1.ConfigMap, key: core.v1.Secret | None
) -> core.v1.PodSpecArgs:
    memory = {"memory": f"{plan.memory_gib}Gi"}
    env = [core.v1.EnvVarArgs(name=name, value=value) for name, value in plan.env.items()]
    if key is not None:
        selector = core.v1.SecretKeySelectorArgs(name=key.metadata.name, key="key")
        source = core.v1.EnvVarSourceArgs(secret_key_ref=selector)
        env.append(core.v1.EnvVarArgs(name=KEY_VARIABLE, value_from=source))
    container = core.v1.ContainerArgs(
        name="benchmark",
        image=plan.image,
        image_pull_policy="IfNotPresent",
        command=list(plan.command),
        env=env,
        resources=core.v1.ResourceRequirementsArgs(requests={**memory, "cpu": str(plan.cpu)}, limits=memory),
        termination_message_policy="FallbackToLogsOnError",
        security_context=unprivileged(),
        volume_mounts=[
            *scratch({"home": HOME, "tmp": "/tmp"}),  # noqa: S108  in the pod
            core.v1.VolumeMountArgs(name="weights", mount_path=WEIGHTS, read_only=True),
            read_only("benchmark", PROGRAM),
        ],
    )
    volumes = [empty_dir(name, VOLUME_GIB) for name in ("scratch", "weights")]
    mounted = core.v1.ConfigMapVolumeSourceArgs(name=program.metadata.name, default_mode=0o444)
    volumes.append(core.v1.VolumeArgs(name="benchmark", config_map=mounted))
    return core.v1.PodSpecArgs(
        service_account_name=plan.account,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        node_selector=plan.node_selector,
        tolerations=[core.v1.TolerationArgs(key=key, operator="Exists") for key in plan.tolerated_taints],
        security_context=restricted(),
        init_containers=[task_container(plan.before, access, None, weights=True)],
        containers=[container],
        volumes=[*volumes, *task_volumes(plan.before, access)],
    )
