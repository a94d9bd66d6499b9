"""One served model: Deployment, Service, disruption budget and service account."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes import apps, batch, core, meta, policy

from components.model_access import ModelAccess
from components.model_pod import HTTP, WORKLOAD_IDENTITY, pod
from components.weights import CLIENT_ID, WeightStore
from planning.network_policy import ENGINE
from planning.plan import ModelPlan


@dataclass(frozen=True, kw_only=True)
class ModelServerArgs:
    """The model, where it lives, and where it streams its weights from once they are uploaded.

    Without an `upload` it streams none: the store is for others.
    """

    plan: ModelPlan
    access: ModelAccess
    store: WeightStore | None = None
    upload: batch.v1.Job | None = None


class ModelServer(pulumi.ComponentResource):
    """The replicas of a model, under its name inside the cluster; the edge is the way to them."""

    def __init__(self, name: str, args: ModelServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:ModelServer", name, None, opts)
        plan = args.plan
        # Two labels that never change: a Deployment's selector is immutable, so a third would replace every replica.
        selector = {**ENGINE, "app.kubernetes.io/instance": plan.name}
        labels = {**selector, "app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"}
        metadata = meta.v1.ObjectMetaArgs(name=plan.name, namespace=args.access.namespace, labels=labels)
        # Longer than the Deployment's own progress deadline, so that Kubernetes' reason is reported, not a timeout.
        limit = f"{plan.startup.pulumi_timeout_minutes}m"
        timeouts = pulumi.CustomTimeouts(create=limit, update=limit)

        store = args.store if args.upload else None
        identity = None if store is None else {CLIENT_ID: store.reader_client_id}
        account = core.v1.ServiceAccount(
            f"{name}-service-account",
            metadata=meta.v1.ObjectMetaArgs(
                name=plan.name, namespace=args.access.namespace, labels=labels, annotations=identity
            ),
            automount_service_account_token=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        budget = policy.v1.PodDisruptionBudget(
            f"{name}-disruption-budget",
            metadata=metadata,
            spec=policy.v1.PodDisruptionBudgetSpecArgs(
                selector=meta.v1.LabelSelectorArgs(match_labels=selector),
                max_unavailable=plan.rollout.pdb_max_unavailable,
                # A replica that does not serve is lost to nobody: without this, one that never becomes ready would
                # keep its node from being updated.
                unhealthy_pod_eviction_policy="AlwaysAllow",
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        apps.v1.Deployment(
            f"{name}-deployment",
            metadata=metadata,
            spec=apps.v1.DeploymentSpecArgs(
                replicas=plan.layout.replicas,
                selector=meta.v1.LabelSelectorArgs(match_labels=selector),
                strategy=_strategy(plan),
                min_ready_seconds=plan.rollout.min_ready_seconds,
                progress_deadline_seconds=plan.startup.progress_deadline_seconds,
                template=core.v1.PodTemplateSpecArgs(
                    metadata=meta.v1.ObjectMetaArgs(
                        # What the engine reads is not all in the pod spec; a change to the rest must roll too.
                        labels=labels if store is None else {**labels, **WORKLOAD_IDENTITY},
                        annotations={"aks-vllm/config-hash": plan.config_hash},
                    ),
                    spec=pod(plan, selector, args.access, None if store is None else store.account_name),
                ),
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[
                    *(account, budget, *args.access.priority_classes, *args.access.ready),
                    *([] if args.upload is None else [args.upload]),
                ],
                custom_timeouts=timeouts,
            ),
        )
        # Headless: its name stands for the ready replicas themselves, and the edge chooses among them.
        core.v1.Service(
            f"{name}-service",
            metadata=metadata,
            spec=core.v1.ServiceSpecArgs(
                type="ClusterIP",
                cluster_ip="None",
                selector=selector,
                ports=[core.v1.ServicePortArgs(name=HTTP, port=plan.port, target_port=HTTP)],
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})


def _strategy(plan: ModelPlan) -> apps.v1.DeploymentStrategyArgs:
    return apps.v1.DeploymentStrategyArgs(
        type="RollingUpdate",
        rolling_update=apps.v1.RollingUpdateDeploymentArgs(
            max_surge=plan.rollout.max_surge, max_unavailable=plan.rollout.max_unavailable
        ),
    )
