"""The stack as one would write it by hand: the same resources with the same SDK classes, and every value a literal.

What `__main__.py` is measured against. `tests/bench/test_handwritten.py` keeps the two alike.
"""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_azure_native import authorization, containerservice, managedidentity, network, resources
from pulumi_kubernetes import apps, core, meta, networking, policy, scheduling

from planning.kubeconfig import for_kubelogin

NETWORK_CONTRIBUTOR = "4d97b98b-1d4f-4787-a291-c67834d212e7"
IDENTITY_OPERATOR = "f1a07417-d97a-45cb-824c-7a7467783830"
ADMIN = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"
MODEL = "/models/Llama-3.3-70B-Instruct/6f6073b423013f6a7d4d9f39144961bfbfbc386b"
IMAGE = "vllm/vllm-openai:v0.33.0"
TAGS = {"managed-by": "pulumi", "aks-vllm-stack": "test"}
SELECTOR = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": "model"}
LABELS = {**SELECTOR, "app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"}
EDGE = {"app.kubernetes.io/name": "vllm-edge", "app.kubernetes.io/instance": "edge"}
EDGE_LABELS = {**EDGE, "app.kubernetes.io/managed-by": "pulumi"}
PLUGIN = {"app.kubernetes.io/name": "nvidia-device-plugin"}
PLUGIN_LABELS = {**PLUGIN, "app.kubernetes.io/managed-by": "pulumi"}
SHARED_LABELS = {"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"}


def main() -> None:
    """Declare everything, in the order in which the program does."""
    group = resources.ResourceGroup(
        "cluster-resource-group", resource_group_name="rg-aks-vllm-test", location="eastus", tags=TAGS
    )
    own, kubelet = (
        managedidentity.UserAssignedIdentity(
            name, resource_name_=physical, resource_group_name=group.name, location="eastus", tags=TAGS
        )
        for name, physical in (
            ("cluster-identity", "id-aks-test"),
            ("cluster-kubelet-identity", "id-kubelet-test"),
        )
    )
    public_ip = network.PublicIPAddress(
        "network-public-ip",
        public_ip_address_name="pip-test",
        resource_group_name=group.name,
        location="eastus",
        tags=TAGS,
        sku=network.PublicIPAddressSkuArgs(name="Standard"),
        public_ip_allocation_method="Static",
    )
    nat_gateway = network.NatGateway(
        "network-nat-gateway",
        nat_gateway_name="nat-test",
        resource_group_name=group.name,
        location="eastus",
        tags=TAGS,
        sku=network.NatGatewaySkuArgs(name="Standard"),
        idle_timeout_in_minutes=10,
        public_ip_addresses=[network.SubResourceArgs(id=public_ip.id)],
    )
    security_group = network.NetworkSecurityGroup(
        "network-security-group",
        network_security_group_name="nsg-test",
        resource_group_name=group.name,
        location="eastus",
        tags=TAGS,
    )
    virtual_network = network.VirtualNetwork(
        "network-virtual-network",
        virtual_network_name="vnet-test",
        resource_group_name=group.name,
        location="eastus",
        tags=TAGS,
        address_space=network.AddressSpaceArgs(address_prefixes=["10.224.0.0/16"]),
        subnets=[
            network.SubnetArgs(
                name="nodes",
                address_prefix="10.224.0.0/20",
                nat_gateway=network.SubResourceArgs(id=nat_gateway.id),
                network_security_group=network.NetworkSecurityGroupArgs(id=security_group.id),
                default_outbound_access=False,
            )
        ],
    )
    subnet = pulumi.Output.concat(virtual_network.id, "/subnets/nodes")
    grants = [
        _grant("cluster-kubelet-identity-grant", kubelet.id, IDENTITY_OPERATOR, own.principal_id, "ServicePrincipal"),
        _grant("cluster-network-grant", virtual_network.id, NETWORK_CONTRIBUTOR, own.principal_id, "ServicePrincipal"),
    ]
    cluster = containerservice.ManagedCluster(
        "cluster-managed-cluster",
        resource_name_="aks-vllm-test",
        resource_group_name=group.name,
        location="eastus",
        tags=TAGS,
        dns_prefix="aks-vllm-test",
        node_resource_group="rg-aks-vllm-test-nodes",
        kubernetes_version="1.36",
        sku=containerservice.ManagedClusterSKUArgs(name="Base", tier="Free"),
        identity=containerservice.ManagedClusterIdentityArgs(
            type=containerservice.ResourceIdentityType.USER_ASSIGNED, user_assigned_identities=[own.id]
        ),
        identity_profile={
            "kubeletidentity": containerservice.UserAssignedIdentityArgs(
                resource_id=kubelet.id, client_id=kubelet.client_id, object_id=kubelet.principal_id
            )
        },
        agent_pool_profiles=[
            containerservice.ManagedClusterAgentPoolProfileArgs(
                name="system",
                mode="System",
                type="VirtualMachineScaleSets",
                vm_size="Standard_D4ds_v5",
                count=2,
                availability_zones=["1", "2", "3"],
                vnet_subnet_id=subnet,
                os_type="Linux",
                node_taints=["CriticalAddonsOnly=true:NoSchedule"],
            )
        ],
        network_profile=containerservice.ContainerServiceNetworkProfileArgs(
            network_plugin="azure",
            network_plugin_mode="overlay",
            network_dataplane="cilium",
            network_policy="cilium",
            load_balancer_sku="standard",
            outbound_type="userAssignedNATGateway",
            pod_cidr="10.244.0.0/16",
            service_cidr="10.245.0.0/16",
            dns_service_ip="10.245.0.10",
        ),
        auto_scaler_profile=containerservice.ManagedClusterPropertiesAutoScalerProfileArgs(
            max_graceful_termination_sec="600",
            max_node_provision_time="30m",
            skip_nodes_with_local_storage="false",
        ),
        auto_upgrade_profile=containerservice.ManagedClusterAutoUpgradeProfileArgs(
            upgrade_channel="none", node_os_upgrade_channel="None"
        ),
        enable_rbac=True,
        disable_local_accounts=True,
        aad_profile=containerservice.ManagedClusterAADProfileArgs(managed=True, enable_azure_rbac=True),
        api_server_access_profile=containerservice.ManagedClusterAPIServerAccessProfileArgs(disable_run_command=True),
        oidc_issuer_profile=containerservice.ManagedClusterOIDCIssuerProfileArgs(enabled=True),
        security_profile=containerservice.ManagedClusterSecurityProfileArgs(
            workload_identity=containerservice.ManagedClusterSecurityProfileWorkloadIdentityArgs(enabled=True),
            image_cleaner=containerservice.ManagedClusterSecurityProfileImageCleanerArgs(enabled=False),
            defender=containerservice.ManagedClusterSecurityProfileDefenderArgs(
                security_monitoring=containerservice.ManagedClusterSecurityProfileDefenderSecurityMonitoringArgs(
                    enabled=False
                )
            ),
        ),
        addon_profiles={
            name: containerservice.ManagedClusterAddonProfileArgs(enabled=False)
            for name in ("azurepolicy", "azureKeyvaultSecretsProvider")
        },
        azure_monitor_profile=containerservice.ManagedClusterAzureMonitorProfileArgs(
            metrics=containerservice.ManagedClusterAzureMonitorProfileMetricsArgs(enabled=False)
        ),
        opts=pulumi.ResourceOptions(depends_on=grants, ignore_changes=["agentPoolProfiles"]),
    )
    pool = containerservice.AgentPool(
        "gpu-h100x8-agent-pool",
        agent_pool_name="h100x8",
        resource_group_name=group.name,
        resource_name_=cluster.name,
        mode="User",
        type="VirtualMachineScaleSets",
        orchestrator_version="1.36",
        vm_size="Standard_ND96isr_H100_v5",
        count=1,
        enable_auto_scaling=False,
        scale_down_mode="Delete",
        os_type="Linux",
        os_disk_type="Ephemeral",
        os_disk_size_gb=1000,
        kubelet_disk_type="OS",
        vnet_subnet_id=subnet,
        gpu_profile=containerservice.GPUProfileArgs(driver="Install"),
        node_labels={"aks-vllm/pool": "h100x8"},
        node_taints=["nvidia.com/gpu=present:NoSchedule"],
        upgrade_settings=containerservice.AgentPoolUpgradeSettingsArgs(
            max_surge="0", max_unavailable="1", drain_timeout_in_minutes=30
        ),
        opts=pulumi.ResourceOptions(
            deleted_with=cluster,
            replace_on_changes=["osDiskSizeGB", "osDiskType", "kubeletDiskType", "osType", "gpuProfile", "type"],
            delete_before_replace=True,
            custom_timeouts=pulumi.CustomTimeouts(create="60m"),
        ),
    )
    deployer = authorization.get_client_config_output()
    grant = _grant("access-deployer", cluster.id, ADMIN, deployer.object_id, None)
    containerservice.MaintenanceConfiguration(
        "cluster-care-maintenance",
        config_name="default",
        resource_group_name=group.name,
        resource_name_=cluster.name,
        maintenance_window=containerservice.MaintenanceWindowArgs(
            duration_hours=4,
            start_time="02:00",
            schedule=containerservice.ScheduleArgs(
                weekly=containerservice.WeeklyScheduleArgs(day_of_week="Sunday", interval_weeks=1)
            ),
        ),
        opts=pulumi.ResourceOptions(depends_on=[pool], deleted_with=cluster),
    )
    credentials = containerservice.list_managed_cluster_user_credentials_output(
        resource_group_name=group.name,
        resource_name=cluster.name,
        format="exec",
        opts=pulumi.InvokeOutputOptions(depends_on=[cluster, grant]),
    )
    kubeconfig = pulumi.Output.secret(credentials).apply(
        lambda listed: for_kubelogin(base64.b64decode(listed.kubeconfigs[0].value).decode(), "azurecli")
    )
    provider = kubernetes.Provider(
        "access-provider",
        kubeconfig=kubeconfig,
        cluster_identifier="aks-vllm-test",
        opts=pulumi.ResourceOptions(depends_on=[grant, pool]),
    )
    inside = pulumi.ResourceOptions(provider=provider, deleted_with=cluster)
    _device_plugin(inside)
    namespace = core.v1.Namespace(
        "models-namespace",
        metadata=meta.v1.ObjectMetaArgs(
            name="vllm", labels={**SHARED_LABELS, "pod-security.kubernetes.io/enforce": "restricted"}
        ),
        opts=inside,
    )
    scheduling.v1.PriorityClass(
        "models-priority-vllm",
        metadata=meta.v1.ObjectMetaArgs(name="vllm", labels=SHARED_LABELS),
        value=1_000_000,
        description="Replicas of models; a larger one goes before a smaller one where they share nodes.",
        opts=inside,
    )
    token = core.v1.Secret(
        "models-hugging-face-token",
        metadata=meta.v1.ObjectMetaArgs(namespace=namespace.metadata.name, labels=SHARED_LABELS),
        string_data={"token": pulumi.Config("aks-vllm").require_secret("hf-token")},
        opts=inside,
    )
    _network_policies(namespace.metadata.name, inside)
    program = core.v1.ConfigMap(
        "models-weights-program",
        metadata=meta.v1.ObjectMetaArgs(namespace=namespace.metadata.name, labels=SHARED_LABELS),
        data={"weights.py": (Path(__file__).parents[1] / "pod" / "weights.py").read_text()},
        opts=inside,
    )
    _model(namespace.metadata.name, token.metadata.name, program.metadata.name, provider, cluster)
    _edge(namespace.metadata.name, inside)
    pulumi.export("kubeconfig", kubeconfig)
    pulumi.export("cluster", cluster.name)


def _device_plugin(inside: pulumi.ResourceOptions) -> None:
    namespace = core.v1.Namespace(
        "gpu-runtime-namespace",
        metadata=meta.v1.ObjectMetaArgs(
            name="gpu-resources", labels={**PLUGIN_LABELS, "pod-security.kubernetes.io/enforce": "privileged"}
        ),
        opts=inside,
    )
    sockets = "/var/lib/kubelet/device-plugins"
    apps.v1.DaemonSet(
        "gpu-runtime-device-plugin",
        metadata=meta.v1.ObjectMetaArgs(
            name="nvidia-device-plugin", namespace=namespace.metadata.name, labels=PLUGIN_LABELS
        ),
        spec=apps.v1.DaemonSetSpecArgs(
            selector=meta.v1.LabelSelectorArgs(match_labels=PLUGIN),
            template=core.v1.PodTemplateSpecArgs(
                metadata=meta.v1.ObjectMetaArgs(labels=PLUGIN_LABELS),
                spec=core.v1.PodSpecArgs(
                    affinity=core.v1.AffinityArgs(
                        node_affinity=core.v1.NodeAffinityArgs(
                            required_during_scheduling_ignored_during_execution=core.v1.NodeSelectorArgs(
                                node_selector_terms=[
                                    core.v1.NodeSelectorTermArgs(
                                        match_expressions=[
                                            core.v1.NodeSelectorRequirementArgs(
                                                key="kubernetes.azure.com/accelerator",
                                                operator="In",
                                                values=["nvidia"],
                                            )
                                        ]
                                    )
                                ]
                            )
                        )
                    ),
                    tolerations=[core.v1.TolerationArgs(operator="Exists")],
                    priority_class_name="system-node-critical",
                    automount_service_account_token=False,
                    containers=[
                        core.v1.ContainerArgs(
                            name="nvidia-device-plugin",
                            image="nvcr.io/nvidia/k8s-device-plugin:v0.19.3",
                            image_pull_policy="IfNotPresent",
                            env=[
                                core.v1.EnvVarArgs(name="FAIL_ON_INIT_ERROR", value="false"),
                                core.v1.EnvVarArgs(name="PASS_DEVICE_SPECS", value="true"),
                            ],
                            security_context=_unprivileged(),
                            volume_mounts=[core.v1.VolumeMountArgs(name="device-plugins", mount_path=sockets)],
                        )
                    ],
                    volumes=[
                        core.v1.VolumeArgs(
                            name="device-plugins", host_path=core.v1.HostPathVolumeSourceArgs(path=sockets)
                        )
                    ],
                ),
            ),
        ),
        opts=inside,
    )


def _network_policies(namespace: pulumi.Output[str], inside: pulumi.ResourceOptions) -> None:
    """Default deny, and what is let through."""

    def pods(labels: dict[str, str], namespace: str | None = None) -> networking.v1.NetworkPolicyPeerArgs:
        within = {"kubernetes.io/metadata.name": namespace or ""}
        return networking.v1.NetworkPolicyPeerArgs(
            pod_selector=meta.v1.LabelSelectorArgs(match_labels=labels),
            namespace_selector=meta.v1.LabelSelectorArgs(match_labels=within) if namespace else None,
        )

    def ports(number: int, *protocols: str) -> list[networking.v1.NetworkPolicyPortArgs]:
        return [networking.v1.NetworkPolicyPortArgs(protocol=each, port=number) for each in protocols or ("TCP",)]

    def ingress(number: int, peers: list[networking.v1.NetworkPolicyPeerArgs] | None) -> Any:
        return networking.v1.NetworkPolicyIngressRuleArgs(from_=peers, ports=ports(number))

    def egress(number: int, peer: networking.v1.NetworkPolicyPeerArgs, *protocols: str) -> Any:
        return networking.v1.NetworkPolicyEgressRuleArgs(to=[peer], ports=ports(number, *protocols))

    engine, edge = {"app.kubernetes.io/name": "vllm"}, {"app.kubernetes.io/name": "vllm-edge"}
    scrapers = [
        pods({"rsName": "ama-metrics"}, "kube-system"),
        pods({"app.kubernetes.io/name": "prometheus"}, "monitoring"),
    ]
    private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "168.63.129.16/32"]
    internet = networking.v1.NetworkPolicyPeerArgs(
        ip_block=networking.v1.IPBlockArgs(cidr="0.0.0.0/0", except_=private)
    )
    dns = pods({"k8s-app": "kube-dns"}, "kube-system")
    rules: dict[str, tuple[dict[str, str], list[Any], list[Any]]] = {
        "default-deny": ({}, [], []),
        "dns": ({}, [], [egress(53, dns, "UDP", "TCP")]),
        "edge": (edge, [ingress(8080, None), ingress(8404, scrapers)], [egress(8000, pods(engine))]),
        "replicas": (engine, [ingress(8000, [pods(edge), *scrapers])], []),
        "weights-model": (
            engine | {"app.kubernetes.io/instance": "model"},
            [],
            [egress(443, internet)],
        ),
    }
    for name, (selected, inward, outward) in rules.items():
        types = [kind for kind, found in (("Ingress", inward), ("Egress", outward)) if found]
        networking.v1.NetworkPolicy(
            f"network-{name}",
            metadata=meta.v1.ObjectMetaArgs(
                name=name, namespace=namespace, labels=SHARED_LABELS, annotations={"aks-vllm/why": name}
            ),
            spec=networking.v1.NetworkPolicySpecArgs(
                pod_selector=meta.v1.LabelSelectorArgs(match_labels=selected),
                policy_types=types or ["Ingress", "Egress"],
                ingress=inward or None,
                egress=outward or None,
            ),
            opts=inside,
        )


def _model(
    namespace: pulumi.Output[str],
    token: pulumi.Output[str],
    program: pulumi.Output[str],
    provider: kubernetes.Provider,
    cluster: containerservice.ManagedCluster,
) -> None:
    metadata = meta.v1.ObjectMetaArgs(name="model", namespace=namespace, labels=LABELS)
    timeouts = pulumi.CustomTimeouts(create="196m", update="196m")
    inside = pulumi.ResourceOptions(provider=provider, deleted_with=cluster)
    account = core.v1.ServiceAccount(
        "model-service-account", metadata=metadata, automount_service_account_token=False, opts=inside
    )
    budget = policy.v1.PodDisruptionBudget(
        "model-disruption-budget",
        metadata=metadata,
        spec=policy.v1.PodDisruptionBudgetSpecArgs(
            selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR),
            max_unavailable=2,
            unhealthy_pod_eviction_policy="AlwaysAllow",
        ),
        opts=inside,
    )
    apps.v1.Deployment(
        "model-deployment",
        metadata=metadata,
        spec=apps.v1.DeploymentSpecArgs(
            replicas=2,
            selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR),
            strategy=apps.v1.DeploymentStrategyArgs(
                type="RollingUpdate",
                rolling_update=apps.v1.RollingUpdateDeploymentArgs(max_surge=0, max_unavailable=1),
            ),
            min_ready_seconds=10,
            progress_deadline_seconds=5580,
            template=core.v1.PodTemplateSpecArgs(
                metadata=meta.v1.ObjectMetaArgs(labels=LABELS, annotations={"aks-vllm/config-hash": "0" * 16}),
                spec=_pod(token, program),
            ),
        ),
        opts=pulumi.ResourceOptions(
            provider=provider, deleted_with=cluster, depends_on=[account, budget], custom_timeouts=timeouts
        ),
    )
    core.v1.Service(
        "model-service",
        metadata=metadata,
        spec=core.v1.ServiceSpecArgs(
            type="ClusterIP",
            cluster_ip="None",
            selector=SELECTOR,
            ports=[core.v1.ServicePortArgs(name="http", port=8000, target_port="http")],
        ),
        opts=pulumi.ResourceOptions(provider=provider, deleted_with=cluster),
    )


def _edge(namespace: pulumi.Output[str], inside: pulumi.ResourceOptions) -> None:
    metadata = meta.v1.ObjectMetaArgs(name="edge", namespace=namespace, labels=EDGE_LABELS)
    configuration = core.v1.ConfigMap(
        "edge-configuration",
        metadata=meta.v1.ObjectMetaArgs(namespace=namespace, labels=EDGE_LABELS),
        data={"haproxy.cfg": "# by hand", "routes.map": "# by hand"},
        opts=inside,
    )
    core.v1.ServiceAccount(
        "edge-service-account", metadata=metadata, automount_service_account_token=False, opts=inside
    )
    policy.v1.PodDisruptionBudget(
        "edge-disruption-budget",
        metadata=metadata,
        spec=policy.v1.PodDisruptionBudgetSpecArgs(
            selector=meta.v1.LabelSelectorArgs(match_labels=EDGE), max_unavailable=1
        ),
        opts=inside,
    )
    health = core.v1.HTTPGetActionArgs(path="/healthz", port="admin")
    deployment = apps.v1.Deployment(
        "edge-deployment",
        metadata=metadata,
        spec=apps.v1.DeploymentSpecArgs(
            replicas=2,
            selector=meta.v1.LabelSelectorArgs(match_labels=EDGE),
            strategy=apps.v1.DeploymentStrategyArgs(
                type="RollingUpdate",
                rolling_update=apps.v1.RollingUpdateDeploymentArgs(max_surge=1, max_unavailable=0),
            ),
            template=core.v1.PodTemplateSpecArgs(
                metadata=meta.v1.ObjectMetaArgs(labels=EDGE_LABELS),
                spec=core.v1.PodSpecArgs(
                    service_account_name="edge",
                    automount_service_account_token=False,
                    enable_service_links=False,
                    node_selector={"kubernetes.azure.com/mode": "system"},
                    tolerations=[core.v1.TolerationArgs(key="CriticalAddonsOnly", operator="Exists")],
                    topology_spread_constraints=[
                        core.v1.TopologySpreadConstraintArgs(
                            topology_key="kubernetes.io/hostname",
                            max_skew=1,
                            when_unsatisfiable="DoNotSchedule",
                            node_taints_policy="Honor",
                            match_label_keys=["pod-template-hash"],
                            label_selector=meta.v1.LabelSelectorArgs(match_labels=EDGE),
                        )
                    ],
                    termination_grace_period_seconds=364,
                    security_context=core.v1.PodSecurityContextArgs(
                        run_as_non_root=True,
                        run_as_user=99,
                        run_as_group=99,
                        fs_group=99,
                        seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
                    ),
                    containers=[
                        core.v1.ContainerArgs(
                            name="haproxy",
                            image="library/haproxy:3.4.2",
                            image_pull_policy="IfNotPresent",
                            command=["haproxy", "-W", "-db", "-f", "haproxy.cfg"],
                            working_dir="/usr/local/etc/haproxy",
                            env=[
                                core.v1.EnvVarArgs(name="EDGE_ADDRESS", value=":8080"),
                                core.v1.EnvVarArgs(name="EDGE_ADMIN_ADDRESS", value=":8404"),
                                core.v1.EnvVarArgs(name="CLUSTER_DNS", value="10.245.0.10:53"),
                            ],
                            ports=[
                                core.v1.ContainerPortArgs(name="clients", container_port=8080),
                                core.v1.ContainerPortArgs(name="admin", container_port=8404),
                            ],
                            readiness_probe=core.v1.ProbeArgs(
                                http_get=health, initial_delay_seconds=5, period_seconds=5, timeout_seconds=5
                            ),
                            liveness_probe=core.v1.ProbeArgs(
                                http_get=health, period_seconds=10, timeout_seconds=5, failure_threshold=6
                            ),
                            lifecycle=core.v1.LifecycleArgs(
                                pre_stop=core.v1.LifecycleHandlerArgs(sleep=core.v1.SleepActionArgs(seconds=20))
                            ),
                            resources=core.v1.ResourceRequirementsArgs(
                                requests={"memory": "256Mi", "cpu": "500m"}, limits={"memory": "256Mi"}
                            ),
                            security_context=core.v1.SecurityContextArgs(
                                allow_privilege_escalation=False,
                                read_only_root_filesystem=True,
                                capabilities=core.v1.CapabilitiesArgs(drop=["ALL"]),
                            ),
                            volume_mounts=[
                                core.v1.VolumeMountArgs(
                                    name="configuration", mount_path="/usr/local/etc/haproxy", read_only=True
                                )
                            ],
                        )
                    ],
                    volumes=[
                        core.v1.VolumeArgs(
                            name="configuration",
                            projected=core.v1.ProjectedVolumeSourceArgs(
                                default_mode=0o440,
                                sources=[
                                    core.v1.VolumeProjectionArgs(
                                        config_map=core.v1.ConfigMapProjectionArgs(name=configuration.metadata.name)
                                    )
                                ],
                            ),
                        )
                    ],
                ),
            ),
        ),
        opts=inside,
    )
    service = core.v1.Service(
        "edge-service",
        metadata=meta.v1.ObjectMetaArgs(
            name="edge",
            namespace=namespace,
            labels=EDGE_LABELS,
            annotations={"service.beta.kubernetes.io/azure-load-balancer-internal": "true"},
        ),
        spec=core.v1.ServiceSpecArgs(
            type="LoadBalancer",
            selector=EDGE,
            ports=[core.v1.ServicePortArgs(name="clients", port=80, target_port="clients")],
        ),
        opts=pulumi.ResourceOptions.merge(inside, pulumi.ResourceOptions(depends_on=[deployment])),
    )
    address = service.status.load_balancer.ingress[0].ip
    pulumi.export("endpoint", pulumi.Output.concat("http://", address, "/v1"))


def _pod(token: pulumi.Output[str], program: pulumi.Output[str]) -> core.v1.PodSpecArgs:
    scratch = [
        core.v1.VolumeMountArgs(name="scratch", sub_path="cache", mount_path="/var/cache/vllm"),
        core.v1.VolumeMountArgs(name="scratch", sub_path="home", mount_path="/home/vllm"),
        core.v1.VolumeMountArgs(name="scratch", sub_path="tmp", mount_path="/tmp"),  # noqa: S108  in the pod
    ]
    probe = core.v1.HTTPGetActionArgs(path="/health", port="http")
    return core.v1.PodSpecArgs(
        service_account_name="model",
        automount_service_account_token=False,
        enable_service_links=False,
        node_selector={"aks-vllm/pool": "h100x8"},
        tolerations=[core.v1.TolerationArgs(key="nvidia.com/gpu", operator="Exists")],
        priority_class_name="vllm",
        topology_spread_constraints=[
            core.v1.TopologySpreadConstraintArgs(
                topology_key="kubernetes.io/hostname",
                max_skew=1,
                when_unsatisfiable="ScheduleAnyway",
                label_selector=meta.v1.LabelSelectorArgs(match_labels=SELECTOR),
            )
        ],
        termination_grace_period_seconds=354,
        security_context=core.v1.PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=2000,
            run_as_group=0,
            fs_group=0,
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=core.v1.SeccompProfileArgs(type="RuntimeDefault"),
        ),
        init_containers=[
            core.v1.ContainerArgs(
                name="download",
                image=IMAGE,
                image_pull_policy="IfNotPresent",
                command=[
                    *("python3", "/opt/aks-vllm/weights.py", "download", "meta-llama/Llama-3.3-70B-Instruct"),
                    *("--revision", "6f6073b423013f6a7d4d9f39144961bfbfbc386b", "--to", MODEL),
                    *("--give-up-after", "2172", "--exclude", "original/*"),
                ],
                env=[
                    core.v1.EnvVarArgs(name="HOME", value="/home/vllm"),
                    core.v1.EnvVarArgs(name="HF_HUB_DISABLE_TELEMETRY", value="1"),
                    core.v1.EnvVarArgs(name="PYTHONUNBUFFERED", value="1"),
                    core.v1.EnvVarArgs(name="NVIDIA_VISIBLE_DEVICES", value="void"),
                    core.v1.EnvVarArgs(name="HF_TOKEN_PATH", value="/var/run/secrets/huggingface/token"),
                ],
                termination_message_policy="FallbackToLogsOnError",
                security_context=_unprivileged(),
                volume_mounts=[
                    core.v1.VolumeMountArgs(name="weights", mount_path="/models"),
                    *scratch[1:],
                    core.v1.VolumeMountArgs(name="program", mount_path="/opt/aks-vllm", read_only=True),
                    core.v1.VolumeMountArgs(name="token", mount_path="/var/run/secrets/huggingface", read_only=True),
                ],
            )
        ],
        containers=[
            core.v1.ContainerArgs(
                name="vllm",
                image=IMAGE,
                image_pull_policy="IfNotPresent",
                command=["vllm", "serve"],
                args=[
                    *(MODEL, "--served-model-name", "llama-3.3-70b-instruct", "--port", "8000"),
                    *("--tensor-parallel-size", "4", "--max-model-len", "131072", "--shutdown-timeout", "274"),
                    *("--disable-access-log-for-endpoints", "/health,/metrics"),
                ],
                env=[
                    core.v1.EnvVarArgs(name="HF_HUB_OFFLINE", value="1"),
                    core.v1.EnvVarArgs(name="HOME", value="/home/vllm"),
                    core.v1.EnvVarArgs(name="VLLM_CACHE_ROOT", value="/var/cache/vllm"),
                    core.v1.EnvVarArgs(name="VLLM_ENGINE_READY_TIMEOUT_S", value="1860"),
                    core.v1.EnvVarArgs(name="VLLM_NO_USAGE_STATS", value="1"),
                ],
                ports=[core.v1.ContainerPortArgs(name="http", container_port=8000)],
                startup_probe=core.v1.ProbeArgs(
                    http_get=probe, period_seconds=10, timeout_seconds=5, failure_threshold=186
                ),
                liveness_probe=core.v1.ProbeArgs(
                    http_get=probe, period_seconds=10, timeout_seconds=5, failure_threshold=6
                ),
                readiness_probe=core.v1.ProbeArgs(
                    http_get=probe, period_seconds=5, timeout_seconds=5, failure_threshold=3
                ),
                lifecycle=core.v1.LifecycleArgs(
                    pre_stop=core.v1.LifecycleHandlerArgs(sleep=core.v1.SleepActionArgs(seconds=40))
                ),
                resources=core.v1.ResourceRequirementsArgs(
                    requests={"nvidia.com/gpu": "4", "memory": "400Gi", "cpu": "40"},
                    limits={"nvidia.com/gpu": "4", "memory": "400Gi"},
                ),
                security_context=_unprivileged(),
                volume_mounts=[
                    core.v1.VolumeMountArgs(name="weights", mount_path="/models", read_only=True),
                    core.v1.VolumeMountArgs(name="shm", mount_path="/dev/shm"),  # noqa: S108  in the pod
                    *scratch,
                ],
            )
        ],
        volumes=[
            _empty_dir("weights", "146Gi"),
            _empty_dir("scratch", "30Gi"),
            _empty_dir("shm", "16Gi", "Memory"),
            core.v1.VolumeArgs(
                name="program", config_map=core.v1.ConfigMapVolumeSourceArgs(name=program, default_mode=0o444)
            ),
            core.v1.VolumeArgs(
                name="token",
                secret=core.v1.SecretVolumeSourceArgs(
                    secret_name=token,
                    items=[core.v1.KeyToPathArgs(key="token", path="token")],
                    default_mode=0o440,
                ),
            ),
        ],
    )


def _grant(
    name: str,
    scope: pulumi.Output[str],
    role: str,
    principal: pulumi.Input[str],
    kind: str | None,
) -> authorization.RoleAssignment:
    return authorization.RoleAssignment(
        name,
        role_assignment_name=pulumi.Output.all(scope, principal).apply(
            lambda parts: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{parts[0].lower()}/{role}/{parts[1]}"))
        ),
        scope=scope,
        role_definition_id=scope.apply(
            lambda path: "/".join(path.split("/")[:3]) + f"/providers/Microsoft.Authorization/roleDefinitions/{role}"
        ),
        principal_id=principal,
        principal_type=pulumi.Output.from_input(kind),
    )


def _unprivileged() -> core.v1.SecurityContextArgs:
    return core.v1.SecurityContextArgs(
        allow_privilege_escalation=False, capabilities=core.v1.CapabilitiesArgs(drop=["ALL"])
    )


def _empty_dir(name: str, size: str, medium: str | None = None) -> core.v1.VolumeArgs:
    return core.v1.VolumeArgs(name=name, empty_dir=core.v1.EmptyDirVolumeSourceArgs(size_limit=size, medium=medium))


if __name__ == "__main__":
    main()
