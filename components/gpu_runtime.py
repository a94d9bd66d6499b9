"""The NVIDIA device plugin: what turns a node with a driver into a node that offers nvidia.com/gpu."""

from __future__ import annotations

import pulumi
from pulumi_kubernetes import apps, core, meta

from planning.plan import DevicePluginPlan

#: The namespace of Microsoft's own instructions. Not kube-system: AKS reconciles that one, and a hostPath volume needs
#: the privileged Pod Security level, which is granted here to nothing else.
NAMESPACE = "gpu-resources"
KUBELET_SOCKETS = "/var/lib/kubelet/device-plugins"


class GpuRuntime(pulumi.ComponentResource):
    """One plugin pod on every GPU node; a DaemonSet, because a chart needs the cluster at the first preview."""

    def __init__(self, name: str, plan: DevicePluginPlan, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:GpuRuntime", name, None, opts)
        labels = {"app.kubernetes.io/name": "nvidia-device-plugin", "app.kubernetes.io/managed-by": "pulumi"}
        selector = {"app.kubernetes.io/name": "nvidia-device-plugin"}

        namespace = core.v1.Namespace(
            f"{name}-namespace",
            metadata=meta.v1.ObjectMetaArgs(
                name=NAMESPACE, labels={**labels, "pod-security.kubernetes.io/enforce": "privileged"}
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        apps.v1.DaemonSet(
            f"{name}-device-plugin",
            metadata=meta.v1.ObjectMetaArgs(
                name="nvidia-device-plugin", namespace=namespace.metadata.name, labels=labels
            ),
            spec=apps.v1.DaemonSetSpecArgs(
                selector=meta.v1.LabelSelectorArgs(match_labels=selector),
                template=core.v1.PodTemplateSpecArgs(metadata=meta.v1.ObjectMetaArgs(labels=labels), spec=_pod(plan)),
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})


def _pod(plan: DevicePluginPlan) -> core.v1.PodSpecArgs:
    label, value = plan.node_label
    gpu_nodes = core.v1.NodeSelectorTermArgs(
        match_expressions=[core.v1.NodeSelectorRequirementArgs(key=label, operator="In", values=[value])]
    )
    return core.v1.PodSpecArgs(
        affinity=core.v1.AffinityArgs(
            node_affinity=core.v1.NodeAffinityArgs(
                required_during_scheduling_ignored_during_execution=core.v1.NodeSelectorArgs(
                    node_selector_terms=[gpu_nodes]
                )
            )
        ),
        # Any taint: a GPU node without the plugin is Ready, billed, and offers nothing.
        tolerations=[core.v1.TolerationArgs(operator="Exists")],
        priority_class_name="system-node-critical",
        automount_service_account_token=False,
        containers=[
            core.v1.ContainerArgs(
                name="nvidia-device-plugin",
                image=plan.image.reference,
                image_pull_policy="IfNotPresent",
                env=[
                    # The pod may start before the driver is ready: wait for it rather than crash.
                    core.v1.EnvVarArgs(name="FAIL_ON_INIT_ERROR", value="false"),
                    # Else a systemd reload on the node takes the GPUs from running pods (Azure/AKS#3680).
                    core.v1.EnvVarArgs(name="PASS_DEVICE_SPECS", value="true"),
                ],
                # Without requests, Azure's deployment safeguards would add half a CPU and 2 GiB.
                resources=core.v1.ResourceRequirementsArgs(requests={"cpu": "10m", "memory": "64Mi"}),
                security_context=core.v1.SecurityContextArgs(
                    allow_privilege_escalation=False,
                    capabilities=core.v1.CapabilitiesArgs(drop=["ALL"]),
                    seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
                ),
                volume_mounts=[core.v1.VolumeMountArgs(name="device-plugins", mount_path=KUBELET_SOCKETS)],
            )
        ],
        volumes=[
            core.v1.VolumeArgs(name="device-plugins", host_path=core.v1.HostPathVolumeSourceArgs(path=KUBELET_SOCKETS))
        ],
    )
