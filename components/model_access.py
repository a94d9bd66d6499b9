"""Where the models live, and the one credential they may need: the Hugging Face token."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes import core, meta


@dataclass(frozen=True, kw_only=True)
class ModelAccessArgs:
    """The models' namespace, and the token if a gated model is served; always a secret, never in the plan."""

    namespace: str
    hf_token: pulumi.Output[str] | None


class ModelAccess(pulumi.ComponentResource):
    """The models' namespace and, for gated models, the Secret that their init containers read."""

    namespace: pulumi.Output[str]
    token_secret: pulumi.Output[str] | None

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
        self.register_outputs({"namespace": self.namespace})
