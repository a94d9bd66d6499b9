"""The way to the models: two HAProxy pods behind a load balancer, which nothing but they may go around."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes import apps, core, meta, policy

from components.key_vault import Mounted
from components.model_access import ModelAccess
from planning.edge import CERTIFICATE_FILE, NAME, VAULT_FOLDER, EdgePlan

#: The user of the official image: https://github.com/docker-library/haproxy
UID = 99
FOLDER = "/usr/local/etc/haproxy"
CERTIFICATE = "certificate"  # the volume
KEYS = "keys.map"
CLIENTS, ADMIN = "clients", "admin"  # the named ports
SELECTOR = {"app.kubernetes.io/name": "vllm-edge", "app.kubernetes.io/instance": NAME}


@dataclass(frozen=True, kw_only=True)
class EdgeArgs:
    """The edge, and where it lives. It finds the models by their names, whether they are there yet or not."""

    plan: EdgePlan
    access: ModelAccess


class Edge(pulumi.ComponentResource):
    """The models' endpoint; `urls` are the base URLs that OpenAI clients take, by model."""

    urls: Mapping[str, pulumi.Output[str]]

    def __init__(self, name: str, args: EdgeArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Edge", name, None, opts)
        plan = args.plan
        namespace, vaulted = args.access.namespace, args.access.certificate
        labels = {**SELECTOR, "app.kubernetes.io/managed-by": "pulumi"}
        metadata = meta.v1.ObjectMetaArgs(name=NAME, namespace=namespace, labels=labels)
        # No name: Pulumi makes one up, so that a change is a new object, which the pods follow in an ordinary rollout.
        unnamed = meta.v1.ObjectMetaArgs(namespace=namespace, labels=labels)

        configuration = core.v1.ConfigMap(
            f"{name}-configuration",
            metadata=unnamed,
            data=plan.files,
            opts=pulumi.ResourceOptions(parent=self),
        )
        keys = None
        if plan.keys is not None:
            keys = core.v1.Secret(
                f"{name}-keys",
                metadata=unnamed,
                string_data={KEYS: plan.keys},
                opts=pulumi.ResourceOptions(parent=self),
            )
        account = core.v1.ServiceAccount(
            f"{name}-service-account",
            metadata=metadata,
            automount_service_account_token=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        budget = policy.v1.PodDisruptionBudget(
            f"{name}-disruption-budget",
            metadata=metadata,
            spec=policy.v1.PodDisruptionBudgetSpecArgs(
                selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR), max_unavailable=1
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        deployment = apps.v1.Deployment(
            f"{name}-deployment",
            metadata=metadata,
            spec=apps.v1.DeploymentSpecArgs(
                replicas=plan.replicas,
                selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR),
                strategy=apps.v1.DeploymentStrategyArgs(
                    type="RollingUpdate",
                    rolling_update=apps.v1.RollingUpdateDeploymentArgs(max_surge=1, max_unavailable=0),
                ),
                template=core.v1.PodTemplateSpecArgs(
                    metadata=meta.v1.ObjectMetaArgs(labels=labels),
                    spec=_pod(plan, configuration, keys, vaulted),
                ),
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[account, budget, *(vaulted.ready if vaulted else ())]),
        )
        service = core.v1.Service(
            f"{name}-service",
            metadata=meta.v1.ObjectMetaArgs(
                name=NAME, namespace=namespace, labels=labels, annotations=plan.service_annotations
            ),
            spec=core.v1.ServiceSpecArgs(
                type="LoadBalancer",
                selector=SELECTOR,
                ports=[core.v1.ServicePortArgs(name=CLIENTS, port=plan.service_port, target_port=CLIENTS)],
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[deployment]),
        )
        # Clients use the name of a certificate; without one, the address that Azure gave.
        ingress = service.status.load_balancer.ingress[0]
        address = pulumi.Output.from_input(plan.host) if plan.host else ingress.ip
        self.urls = {
            model: pulumi.Output.concat(f"{plan.scheme}://", address, path) for model, path in plan.base_paths.items()
        }
        self.register_outputs({"urls": self.urls})


def _pod(
    plan: EdgePlan, configuration: core.v1.ConfigMap, keys: core.v1.Secret | None, vaulted: Mounted | None
) -> core.v1.PodSpecArgs:
    return core.v1.PodSpecArgs(
        service_account_name=NAME,
        automount_service_account_token=False,
        enable_service_links=False,
        node_selector=plan.node_selector,
        tolerations=[core.v1.TolerationArgs(key=key, operator="Exists") for key in plan.tolerated_taints],
        topology_spread_constraints=[
            core.v1.TopologySpreadConstraintArgs(
                topology_key="kubernetes.io/hostname",
                max_skew=1,
                when_unsatisfiable="DoNotSchedule",
                # A node that is drained counts no more, nor do the pods that an update replaces.
                node_taints_policy="Honor",
                match_label_keys=["pod-template-hash"],
                label_selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR),
            )
        ],
        termination_grace_period_seconds=plan.termination_grace_seconds,
        security_context=core.v1.PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=UID,
            run_as_group=UID,
            fs_group=UID,
            seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
        ),
        containers=[_haproxy(plan, vaulted)],
        volumes=[
            core.v1.VolumeArgs(
                name="configuration",
                projected=core.v1.ProjectedVolumeSourceArgs(
                    default_mode=0o440, sources=_files(plan, configuration, keys)
                ),
            ),
            *([vaulted.volume(CERTIFICATE)] if vaulted else ()),
        ],
    )


def _haproxy(plan: EdgePlan, vaulted: Mounted | None) -> core.v1.ContainerArgs:
    mounts = [core.v1.VolumeMountArgs(name="configuration", mount_path=FOLDER, read_only=True)]
    if vaulted:
        folder = posixpath.normpath(f"{FOLDER}/{VAULT_FOLDER}")
        mounts.append(core.v1.VolumeMountArgs(name=CERTIFICATE, mount_path=folder, read_only=True))
    memory = {"memory": f"{plan.memory_mib}Mi"}
    health = core.v1.HTTPGetActionArgs(path="/healthz", port=ADMIN)
    return core.v1.ContainerArgs(
        name="haproxy",
        image=plan.image.reference,
        image_pull_policy="IfNotPresent",
        command=list(plan.command),
        working_dir=FOLDER,
        env=[core.v1.EnvVarArgs(name=name, value=value) for name, value in plan.env.items()],
        ports=[
            core.v1.ContainerPortArgs(name=CLIENTS, container_port=plan.port),
            core.v1.ContainerPortArgs(name=ADMIN, container_port=plan.admin_port),
        ],
        readiness_probe=core.v1.ProbeArgs(
            http_get=health,
            initial_delay_seconds=plan.first_lookup_seconds,  # it looks the replicas up first
            period_seconds=5,
            timeout_seconds=5,
        ),
        liveness_probe=core.v1.ProbeArgs(http_get=health, period_seconds=10, timeout_seconds=5, failure_threshold=6),
        lifecycle=core.v1.LifecycleArgs(
            # The load balancer must forget the pod before HAProxy stops listening.
            pre_stop=core.v1.LifecycleHandlerArgs(sleep=core.v1.SleepActionArgs(seconds=plan.pre_stop_seconds))
        ),
        resources=core.v1.ResourceRequirementsArgs(requests={**memory, "cpu": plan.cpu}, limits=memory),
        security_context=core.v1.SecurityContextArgs(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=core.v1.CapabilitiesArgs(drop=["ALL"]),
        ),
        volume_mounts=mounts,
    )


def _files(
    plan: EdgePlan, configuration: core.v1.ConfigMap, keys: core.v1.Secret | None
) -> list[core.v1.VolumeProjectionArgs]:
    """Everything that HAProxy reads, beside each other."""
    sources = [
        core.v1.VolumeProjectionArgs(config_map=core.v1.ConfigMapProjectionArgs(name=configuration.metadata.name))
    ]
    if keys is not None:
        # By its name, as the policy on open endpoints looks for it.
        items = [core.v1.KeyToPathArgs(key=KEYS, path=KEYS)]
        secret = core.v1.SecretProjectionArgs(name=keys.metadata.name, items=items)
        sources.append(core.v1.VolumeProjectionArgs(secret=secret))
    if plan.tls_secret is not None:
        # HAProxy looks for the key of `edge.pem` in `edge.pem.key`.
        pair = [("tls.crt", CERTIFICATE_FILE), ("tls.key", f"{CERTIFICATE_FILE}.key")]
        items = [core.v1.KeyToPathArgs(key=key, path=path) for key, path in pair]
        secret = core.v1.SecretProjectionArgs(name=plan.tls_secret, items=items)
        sources.append(core.v1.VolumeProjectionArgs(secret=secret))
    return sources
