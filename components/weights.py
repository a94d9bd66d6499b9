"""Weights in Azure Blob Storage: the account, who may read and write it, and the Jobs that fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization, resources, storage
from pulumi_kubernetes import batch, core, meta

from components.cluster import Cluster
from components.existing_cluster import ExistingCluster
from components.model_access import ModelAccess
from components.model_pod import WORKLOAD_IDENTITY, empty_dir, restricted, task_container, task_volumes
from components.workload_identity import workload_identity
from planning import names
from planning.plan import StackPlan
from planning.roles import BLOB_DATA_CONTRIBUTOR, BLOB_DATA_READER
from planning.weight_source import UploadPlan, WeightStorePlan

#: Which identity AKS's workload identity webhook signs a service account's pods in as.
#: https://learn.microsoft.com/azure/aks/workload-identity-overview
CLIENT_ID = "azure.workload.identity/client-id"


@dataclass(frozen=True, kw_only=True)
class WeightStoreArgs:
    """What is stored and who comes for it (`plan`), in which stack, and the cluster whose service accounts they are."""

    plan: WeightStorePlan
    stack: StackPlan
    cluster: Cluster | ExistingCluster


class WeightStore(pulumi.ComponentResource):
    """A storage account without keys: replicas may read it, upload Jobs may write it, nobody else has a role on it."""

    account_name: pulumi.Output[str]
    reader_client_id: pulumi.Output[str]
    uploader_client_id: pulumi.Output[str]
    ready: list[pulumi.Resource]  # what must stand before a pod can sign in

    def __init__(self, name: str, args: WeightStoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:WeightStore", name, None, opts)
        self._name, self._args = name, args
        plan, stack, group = args.plan, args.stack, self._group()
        subscription = authorization.get_client_config_output().subscription_id

        account = storage.StorageAccount(
            f"{name}-account",
            account_name=subscription.apply(lambda id_: names.storage_account(stack.stack, id_)),
            resource_group_name=group.name,
            location=stack.cluster.location,
            tags=stack.cluster.tags,
            # Premium block blobs are what the streaming rate of the start-up budget was measured on. One copy in one
            # place: whatever is lost can be uploaded again.
            kind=storage.Kind.BLOCK_BLOB_STORAGE,
            sku=storage.SkuArgs(name=storage.SkuName.PREMIUM_LRS),
            # Entra ID signs everybody in: there are no keys to leak, and no way in without a role.
            allow_shared_key_access=False,
            default_to_o_auth_authentication=True,
            allow_blob_public_access=False,
            allow_cross_tenant_replication=False,
            enable_https_traffic_only=True,
            minimum_tls_version=storage.MinimumTlsVersion.TLS1_2,
            opts=pulumi.ResourceOptions(parent=self, protect=stack.cluster.protect),
        )
        container = storage.BlobContainer(
            f"{name}-container",
            account_name=account.name,
            resource_group_name=group.name,
            container_name=plan.container,
            public_access=storage.PublicAccess.NONE,
            opts=pulumi.ResourceOptions(parent=self, deleted_with=account, protect=stack.cluster.protect),
        )
        self.account_name = account.name
        self.ready = []
        # Two identities: a server that faces the network must not be able to change what the next one serves.
        accounts = [(f"model-{model}", model) for model in plan.readers]
        self.reader_client_id = self._identity(
            "reader", stack.names.weights_reader, accounts, BLOB_DATA_READER, container
        )
        uploader = [("weights-upload", plan.uploader)]
        self.uploader_client_id = self._identity(
            "uploader", stack.names.weights_uploader, uploader, BLOB_DATA_CONTRIBUTOR, container
        )
        self.register_outputs({"account": self.account_name})

    def _identity(
        self,
        what: str,
        physical: str,
        service_accounts: Sequence[tuple[str, str]],
        role: str,
        container: storage.BlobContainer,
    ) -> pulumi.Output[str]:
        """An identity that these (credential, service account) pairs sign in as, with one role on the container."""
        stack = self._args.stack
        made = workload_identity(
            f"{self._name}-{what}",
            physical=physical,
            group=self._group().name,
            location=stack.cluster.location,
            tags=stack.cluster.tags,
            role=role,
            scope=container.id,
            issuer=self._args.cluster.issuer_url,
            namespace=stack.namespace,
            accounts=service_accounts,
            parent=self,
        )
        self.ready += made.ready
        return made.client_id

    def _group(self) -> resources.ResourceGroup:
        group = self._args.cluster.resource_group
        assert group is not None, "the plan has weights in a stack that has no resource group"
        return group


@dataclass(frozen=True, kw_only=True)
class WeightUploadsArgs:
    """The Jobs, the service account that they run as, where they write to, and the namespace they run in."""

    plans: Sequence[UploadPlan]
    account: str
    store: WeightStore
    access: ModelAccess


class WeightUploads(pulumi.ComponentResource):
    """One Job for each commit of a model. Pulumi waits for its success; what is uploaded already is not sent again."""

    jobs: dict[str, batch.v1.Job]  # by the path that vLLM is told to serve

    def __init__(self, name: str, args: WeightUploadsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:WeightUploads", name, None, opts)
        labels = {"app.kubernetes.io/name": "weights-upload", "app.kubernetes.io/managed-by": "pulumi"}
        account = core.v1.ServiceAccount(
            f"{name}-service-account",
            metadata=meta.v1.ObjectMetaArgs(
                name=args.account,
                namespace=args.access.namespace,
                labels=labels,
                annotations={CLIENT_ID: args.store.uploader_client_id},
            ),
            automount_service_account_token=False,
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.jobs = {}
        for plan in args.plans:
            limit = f"{plan.pulumi_timeout_minutes}m"
            self.jobs[plan.model_path] = batch.v1.Job(
                f"{name}-{plan.model}",
                metadata=meta.v1.ObjectMetaArgs(name=plan.job, namespace=args.access.namespace, labels=labels),
                spec=batch.v1.JobSpecArgs(
                    # Each attempt goes on where the one before stopped. A Job that was cleaned up would be made again.
                    backoff_limit=6,
                    active_deadline_seconds=plan.deadline_seconds,
                    template=core.v1.PodTemplateSpecArgs(
                        metadata=meta.v1.ObjectMetaArgs(labels={**labels, **WORKLOAD_IDENTITY}),
                        spec=_pod(plan, args),
                    ),
                ),
                opts=pulumi.ResourceOptions(
                    parent=self,
                    depends_on=[account, *args.store.ready, *args.access.ready],
                    custom_timeouts=pulumi.CustomTimeouts(create=limit, update=limit),
                ),
            )
        self.register_outputs({})


def _pod(plan: UploadPlan, args: WeightUploadsArgs) -> core.v1.PodSpecArgs:
    container = task_container(plan.task, args.access, args.store.account_name)
    fixed = {"memory": f"{plan.memory_gib}Gi"}
    container.resources = core.v1.ResourceRequirementsArgs(requests={**fixed, "cpu": str(plan.cpu)}, limits=fixed)
    return core.v1.PodSpecArgs(
        service_account_name=args.account,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",  # a failed attempt's pod stays, with its log
        node_selector=plan.node_selector,
        tolerations=[core.v1.TolerationArgs(key=key, operator="Exists") for key in plan.tolerated_taints],
        security_context=restricted(),
        containers=[container],
        volumes=[empty_dir("scratch", 1), *task_volumes(plan.task, args.access)],
    )


def weights(
    plan: StackPlan, cluster: Cluster | ExistingCluster, access: ModelAccess, in_cluster: pulumi.ResourceOptions
) -> tuple[WeightStore | None, dict[str, batch.v1.Job]]:
    """The store with the Jobs that fill it, by the path that vLLM is told to serve; nothing where none is planned."""
    if plan.weight_store is None:
        return None, {}
    store = WeightStore("weights", WeightStoreArgs(plan=plan.weight_store, stack=plan, cluster=cluster))
    args = WeightUploadsArgs(plans=plan.uploads, account=plan.weight_store.uploader, store=store, access=access)
    return store, WeightUploads("weight-uploads", args, in_cluster).jobs
