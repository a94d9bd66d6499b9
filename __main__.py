"""From the stack's settings to served models: read, decide, declare, export."""
# ruff: noqa: E402  the collector stops before the imports that it would slow down

import gc
from datetime import date

gc.disable()  # importing the SDKs makes objects that all stay: searching them for garbage costs a fifth of the run

import pulumi
from pulumi.runtime.config import CONFIG, get_config_env, get_config_secret_keys_env, is_config_secret

from components.benchmark import Benchmarks, BenchmarksArgs
from components.cluster import Cluster, ClusterArgs
from components.cluster_care import ClusterCare, ClusterCareArgs
from components.edge import Edge, EdgeArgs
from components.existing_cluster import ExistingCluster, ExistingClusterArgs
from components.gpu_pool import GpuPool, GpuPoolArgs
from components.gpu_runtime import GpuRuntime
from components.key_vault import KeyVaultArgs
from components.kubernetes_access import KubernetesAccess, KubernetesAccessArgs
from components.model_access import ModelAccess, ModelAccessArgs
from components.model_server import ModelServer, ModelServerArgs
from components.monitoring import Monitoring, MonitoringArgs, PodMonitors, PodMonitorsArgs
from components.network_policy import NetworkPolicies, NetworkPoliciesArgs
from components.weights import weights
from planning import plan as planner
from planning import report, stack_file
from planning.cluster import ClusterPlan
from planning.findings import InvalidStack, Severity

gc.freeze()
gc.enable()

# Read. The whole bag, so that misspelt keys are found; the value of a secret stays out of it.
bag = {**get_config_env(), **CONFIG.get()}
secrets = {key for key in bag if is_config_secret(key)} | {*get_config_secret_keys_env()}
reading = stack_file.from_pulumi(bag | dict.fromkeys(secrets, "[secret]"), secrets, pulumi.get_stack())

# Decide, and stop before anything is declared.
try:
    plan = planner.read_and_decide(reading, date.today())
except InvalidStack as invalid:
    raise pulumi.RunError(f"the stack cannot be deployed:\n{invalid}") from None
steps = [str(finding) for finding in plan.findings if finding.severity is Severity.STEP]
if steps and not pulumi.runtime.is_dry_run():
    raise pulumi.RunError("\n".join(["still to do before an update:", *steps]))
for finding in plan.findings:
    (pulumi.info if finding.severity is Severity.NOTE else pulumi.warn)(str(finding))

# Declare.
if isinstance(plan.cluster, ClusterPlan):
    cluster = Cluster("cluster", ClusterArgs(plan=plan.cluster, names=plan.names))
else:
    cluster = ExistingCluster("cluster", ExistingClusterArgs(plan=plan.cluster, names=plan.names))
pools: list[GpuPool] = []
for pool in plan.pools_to_make:
    pools.append(GpuPool(f"gpu-{pool.name}", GpuPoolArgs(plan=pool, cluster=cluster, after=pools[-1:])))
monitoring = None
if isinstance(cluster, Cluster):
    ClusterCare("cluster-care", ClusterCareArgs(plan=cluster.plan, names=plan.names, cluster=cluster, after=pools))
    if plan.monitoring is not None:
        watched = MonitoringArgs(plan=plan.monitoring, names=plan.names, cluster=cluster)
        monitoring = Monitoring("monitoring", watched)
kubeconfig, token = (pulumi.Config().get_secret(key) for key in ("kubeconfig", "hf-token"))
reach = KubernetesAccessArgs(plan=plan.cluster, cluster=cluster, pools=pools, kubeconfig=kubeconfig)
access = KubernetesAccess("access", reach)
if plan.device_plugin is not None:
    GpuRuntime("gpu-runtime", plan.device_plugin, access.in_cluster)
needed = token if plan.needs_hf_token else None
vault = None
if plan.key_vault is not None and isinstance(cluster, Cluster):
    vault = KeyVaultArgs(plan=plan.key_vault, cluster=cluster, names=plan.names)
shared = ModelAccessArgs(namespace=plan.namespace, priorities=plan.priorities, hf_token=needed, vault=vault)
models = ModelAccess("models", shared, access.in_cluster)
store, uploads = weights(plan, cluster, models, access.in_cluster)
reachable = NetworkPoliciesArgs(plans=plan.network_policies, by_name=plan.name_policies, store=store, access=models)
NetworkPolicies("network", reachable, access.in_cluster)
if plan.monitoring is not None and monitoring is not None:
    fetched = PodMonitorsArgs(plan=plan.monitoring, access=models, after=monitoring)
    PodMonitors("metrics", fetched, access.in_cluster)
serving: list[pulumi.Resource] = []
for model in plan.models:
    server = ModelServerArgs(plan=model, access=models, store=store, upload=uploads.get(model.weights.model_path))
    serving.append(ModelServer(model.name, server, access.in_cluster))
edge = Edge("edge", EdgeArgs(plan=plan.edge, access=models), access.in_cluster)

if plan.benchmarks:
    key = pulumi.Config().get_secret("benchmark-key")
    asked = BenchmarksArgs(plans=plan.benchmarks, access=models, key=key, after=[*serving, edge])
    pulumi.export("benchmarks", Benchmarks("benchmark", asked, access.in_cluster).outcomes)

# Export.
pulumi.export("endpoints", edge.urls)
if cluster.name:
    pulumi.export("cluster", cluster.name)
pulumi.export("kubeconfig", access.kubeconfig)
if monitoring is not None and monitoring.grafana_url is not None:
    pulumi.export("grafana", monitoring.grafana_url)
for key, value in {**report.headline(plan), "readme": report.next_steps(plan)}.items():
    pulumi.export(key, value)
