"""What waits for what, and for how long."""

from __future__ import annotations

from sandbox.engine import Recording
from sandbox.monitor import seconds
from tests.components.harness import AGENT_POOL, CLUSTER, CONFIG_MAP, DEPLOYMENT, GRANT, PROVIDER, SERVICE, Record

TWO_SIZES = {
    "preset": None,
    "models": {
        "large": {"preset": "llama-3.3-70b-instruct", "vm-size": "Standard_ND96isr_H100_v5"},
        "small": {"preset": "qwen3-8b", "vm-size": "Standard_NC40ads_H100_v5"},
    },
}


def _in_cluster(recording: Recording) -> list[str]:
    return [r.urn for r in recording.registrations if r.type.startswith("kubernetes:")]


def test_the_kubernetes_provider_waits_for_the_grant_and_for_every_gpu_pool(recorded: Record) -> None:
    recording = recorded(**TWO_SIZES)
    needed = {r.urn for r in [recording.one(GRANT, "access-deployer"), *recording.of_type(AGENT_POOL)]}
    assert len(needed) == 3
    assert needed <= set(recording.one(PROVIDER).depends_on), (
        "pods would be refused, or wait for a node that never comes"
    )


def test_everything_in_the_cluster_uses_that_provider(recorded: Record) -> None:
    recording = recorded()
    provider = recording.one(PROVIDER).urn
    strays = [
        r.urn
        for r in recording.registrations
        if r.type.startswith("kubernetes:") and not r.provider.startswith(f"{provider}::")
    ]
    assert _in_cluster(recording)
    assert not strays, "without an explicit provider they go to whatever cluster the shell points at"


def test_the_provider_is_never_replaced_because_of_its_kubeconfig(recorded: Record) -> None:
    identifier = recorded().one(PROVIDER).inputs["clusterIdentifier"]
    assert identifier == recorded().one(CLUSTER).inputs["resourceName"], "it must be known before the cluster exists"


def test_a_new_cluster_gets_everything_that_was_in_the_old_one(recorded: Record) -> None:
    recording = recorded()
    assert recording.one(PROVIDER).replace_with == (recording.one(CLUSTER).urn,), "a new cluster is empty"


def test_the_cluster_waits_for_what_its_identity_must_be_allowed_and_nothing_else_does(recorded: Record) -> None:
    """AKS checks the roles when it begins; given afterwards they come too late."""
    recording = recorded()
    grants = {r.urn for r in recording.of_type(GRANT) if r.name != "access-deployer"}
    assert len(grants) == 2
    assert grants <= set(recording.one(CLUSTER).depends_on)


def test_maintenance_waits_for_every_pool(recorded: Record) -> None:
    """It is an operation on the cluster too, and AKS answers 409 to a second one."""
    recording = recorded(**TWO_SIZES)
    pools = {pool.urn for pool in recording.of_type(AGENT_POOL)}
    maintenance = recording.one("azure-native:containerservice:MaintenanceConfiguration")
    assert pools <= set(maintenance.depends_on)
    assert maintenance.urn not in set(recording.one(PROVIDER).depends_on), "nothing that serves waits for it"


def test_pools_are_made_one_after_the_other(recorded: Record) -> None:
    pools = recorded(**TWO_SIZES).of_type(AGENT_POOL)
    urns = [pool.urn for pool in pools]
    waits = [len(set(urns) & set(pool.depends_on)) for pool in pools]
    assert waits == [0, 1], "AKS answers 409 to a second operation on the same cluster"


def test_what_the_deletion_of_the_cluster_deletes_is_not_deleted_one_by_one(recorded: Record) -> None:
    recording = recorded()
    cluster = recording.one(CLUSTER).urn
    parents = {r.urn: r for r in recording.registrations}
    for urn in [*_in_cluster(recording), *(pool.urn for pool in recording.of_type(AGENT_POOL))]:
        own, parent = parents[urn], parents[parents[urn].parent]
        assert cluster in (own.deleted_with, parent.deleted_with), f"{urn} is deleted through an API that may be gone"


def test_each_limit_leaves_room_for_the_one_inside_it(recorded: Record) -> None:
    deployment = recorded().one(DEPLOYMENT, "model-deployment")
    spec = deployment.inputs["spec"]
    (vllm,) = spec["template"]["spec"]["containers"]
    probe = vllm["startupProbe"]["periodSeconds"] * vllm["startupProbe"]["failureThreshold"]
    deadline = spec["progressDeadlineSeconds"]
    assert probe < deadline, "the Deployment would give up while a replica still may become ready"
    for operation in ("create", "update"):
        assert deadline < seconds(deployment.custom_timeouts[operation]), (
            f"{operation} would end before Kubernetes says why"
        )


def test_the_address_of_the_endpoint_waits_for_the_pods_behind_it(recorded: Record) -> None:
    recording = recorded()
    deployment = recording.one(DEPLOYMENT, "edge-deployment")
    assert deployment.urn in recording.one(SERVICE, "edge-service").depends_on, "Pulumi would wait for its endpoints"


def test_the_edge_lets_the_longest_answer_finish_before_it_is_killed(recorded: Record) -> None:
    recording = recorded(max_answer_tokens=30_000)
    pod = recording.one(DEPLOYMENT, "edge-deployment").inputs["spec"]["template"]["spec"]
    (haproxy,) = pod["containers"]
    configuration = recording.one(CONFIG_MAP, "edge-configuration").inputs["data"]["haproxy.cfg"]
    hard_stop = int(configuration.partition("hard-stop-after ")[2].partition("s")[0])
    assert hard_stop > 30_000 / 30, "an answer at 30 tokens a second would be cut"
    assert haproxy["lifecycle"]["preStop"]["sleep"]["seconds"] + hard_stop < pod["terminationGracePeriodSeconds"]


def test_the_grace_period_covers_the_sleep_and_the_longest_answer(recorded: Record) -> None:
    pod = recorded().one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["spec"]
    (vllm,) = pod["containers"]
    flag = vllm["args"].index("--shutdown-timeout")
    drain = vllm["lifecycle"]["preStop"]["sleep"]["seconds"] + int(vllm["args"][flag + 1])
    assert drain < pod["terminationGracePeriodSeconds"], "answers under way would be cut off"
