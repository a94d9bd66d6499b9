"""AKS's user kubeconfig, made to sign in without a person."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

#: How kubelogin gets a token, and what of AKS's arguments each mode keeps; the rest it takes from the environment or
#: from the Azure CLI. AKS's own --client-id is kubelogin's public client: no service principal and no identity has it.
#: https://azure.github.io/kubelogin/concepts/login-modes.html
KEPT = {
    "azurecli": ("--server-id",),
    "workloadidentity": ("--server-id",),
    "msi": ("--server-id",),
    "spn": ("--server-id", "--tenant-id", "--environment"),
}


def for_kubelogin(kubeconfig: str, mode: str) -> str:
    """The kubeconfig that `listClusterUserCredential` returns with format `exec`, signing in by `mode`.

    As returned it says `--login devicecode`, which waits for a person with a browser. Only arguments of `kubelogin` are
    changed. Raises ValueError for another mode, or a kubeconfig that does not sign in so; never shows its text.
    """
    if mode not in KEPT:
        raise ValueError(f"kubelogin = {mode}: must be one of {', '.join(KEPT)}")
    try:
        document = yaml.safe_load(kubeconfig)
        plugins = list(_plugins(document))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        plugins = []
    if not plugins:
        raise ValueError("the cluster's kubeconfig has no user that signs in with kubelogin; is Entra ID on?")
    for plugin in plugins:
        given = _options(plugin["args"])
        if not given.get("--server-id"):
            raise ValueError("the cluster's kubeconfig calls kubelogin without --server-id; was it written by AKS?")
        kept = [word for name in KEPT[mode] if name in given for word in (name, given[name])]
        plugin["args"] = ["get-token", "--login", mode, *kept]
    return yaml.safe_dump(document, sort_keys=False)


def _plugins(document: Any) -> Iterator[dict[str, Any]]:
    """The `exec` of every user that signs in with kubelogin."""
    for user in document["users"]:
        plugin = user["user"].get("exec")
        if plugin and plugin["command"].endswith("kubelogin") and isinstance(plugin["args"], list):
            yield plugin


def _options(arguments: list[object]) -> dict[str, str]:
    """`--name value` and `--name=value`, by name."""
    words = [str(word) for word in arguments]
    split = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return split | {name: value for name, value in pairwise(words) if name.startswith("--")}
