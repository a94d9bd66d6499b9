"""Where the models live, the program that sees to their weights, and the one credential that it may need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pulumi
from pulumi_kubernetes import core, meta, scheduling

from components.key_vault import KeyVault, KeyVaultArgs, Mounted
from planning.plan import Priority
from planning.weight_source import PROGRAM

POD = Path(__file__).parents[1] / "pod"


@dataclass(frozen=True, kw_only=True)
class ModelAccessArgs:
    """The models' namespace and priorities, and the token if a gated model is served: a secret, never in the plan."""

    namespace: str
    priorities: Collection[Priority]
    hf_token: pulumi.Output[str] | None
    vault: KeyVaultArgs | None = None  # where the token, or the edge's certificate, is in a vault


class ModelAccess(pulumi.ComponentResource):
    """The models' namespace, their priorities, and what their pods mount: a program, and what a vault holds."""

    namespace: pulumi.Output[str]
    priority_classes: list[scheduling.v1.PriorityClass]
    weights_program: pulumi.Output[str]
    token_secret: pulumi.Output[str] | None
    token: Mounted | None  # where it is in a vault
    ready: list[pulumi.Resource]  # what must stand before that can be mounted
    certificate: Mounted | None  # where the edge's is

    def __init__(self, name: str, args: ModelAccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:ModelAccess", name, None, opts)
        labels = {"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"}

        namespace = core.v1.Namespace(
            f"{name}-namespace",
            metadata=meta.v1.ObjectMetaArgs(
                name=args.namespace,
                # The model pods meet the strictest level; a pod that does not is refused at once.
                labels={**labels, "pod-security.kubernetes.io/enforce": "restricted"},
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.namespace = namespace.metadata.name
        self.priority_classes = [
            scheduling.v1.PriorityClass(
                f"{name}-priority-{priority.name}",
                metadata=meta.v1.ObjectMetaArgs(name=priority.name, labels=labels),
                value=priority.value,
                description="Replicas of models; a larger one goes before a smaller one where they share nodes.",
                opts=pulumi.ResourceOptions(parent=self),
            )
            for priority in args.priorities
        ]
        program = Path(PROGRAM).name
        self.weights_program = core.v1.ConfigMap(
            f"{name}-weights-program",
            # No name, as below: a new program is a new object, and reaches running models by an ordinary rollout.
            metadata=meta.v1.ObjectMetaArgs(namespace=self.namespace, labels=labels),
            data={program: (POD / program).read_text()},
            opts=pulumi.ResourceOptions(parent=self),
        ).metadata.name
        self.token_secret = None
        if args.hf_token is not None:
            secret = core.v1.Secret(
                f"{name}-hugging-face-token",
                # No name: Pulumi makes one up, so that a new token is a new Secret, which the pods that read it follow
                # in an ordinary rollout, while the old one stays until they are gone.
                metadata=meta.v1.ObjectMetaArgs(namespace=self.namespace, labels=labels),
                string_data={"token": args.hf_token},
                opts=pulumi.ResourceOptions(parent=self),
            )
            self.token_secret = secret.metadata.name
        self.token = self.certificate = None
        if args.vault is not None:
            vault = KeyVault(f"{name}-key-vault", args.vault, self.namespace, pulumi.ResourceOptions(parent=self))
            self.token, self.certificate = vault.token, vault.certificate
        self.ready = self.token.ready if self.token else []
        self.register_outputs({"namespace": self.namespace})
