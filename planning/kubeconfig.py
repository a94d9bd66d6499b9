"""AKS's user kubeconfig, made to sign in without a person."""

from __future__ import annotations

import yaml

#: How kubelogin gets a token. https://azure.github.io/kubelogin/concepts/login-modes.html
MODES = ("azurecli", "workloadidentity", "spn", "msi")
#: What a mode takes from the environment or the Azure CLI, so that the kubeconfig holds no identity of its own.
_FROM_ELSEWHERE = {
    "azurecli": ("--client-id", "--tenant-id", "--environment"),
    "workloadidentity": ("--client-id", "--tenant-id"),
    "spn": ("--client-id",),
    "msi": ("--client-id", "--tenant-id"),
}


def for_kubelogin(kubeconfig: str, mode: str) -> str:
    """The kubeconfig that `listClusterUserCredential` returns with format `exec`, signing in by `mode`.

    As returned it says `--login devicecode`, which waits for a person with a browser. Everything else is kept. Raises
    ValueError for another mode, or a kubeconfig that does not sign in with kubelogin; never shows its text.
    """
    if mode not in MODES:
        raise ValueError(f"kubelogin = {mode}: must be one of {', '.join(MODES)}")
    try:
        document = yaml.safe_load(kubeconfig)
        executed = [user["user"]["exec"] for user in document["users"]]
        arguments = [plugin["args"] for plugin in executed if plugin["command"] == "kubelogin"]
    except (yaml.YAMLError, KeyError, TypeError):
        arguments = []
    if not arguments:
        raise ValueError("the cluster's kubeconfig has no user that signs in with kubelogin; is Entra ID on?")
    for one in arguments:
        one[:] = _rewritten(one, mode)
    return yaml.safe_dump(document, sort_keys=False)


def _rewritten(arguments: list[str], mode: str) -> list[str]:
    """`get-token`, then the options that the mode keeps, then the mode."""
    kept, dropped = [], {*_FROM_ELSEWHERE[mode], "--login", "-l"}
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in dropped:
            kept.append(word)
        elif not equals:
            next(words, None)  # its value
    return [*kept, "--login", mode]
