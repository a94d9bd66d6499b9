"""Who deploys, and into which subscription: found as the azure-native provider finds it, so that both are the same.

https://www.pulumi.com/registry/packages/azure-native/installation-configuration/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight import web
from preflight.checks import NotDone, Once

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

SCOPE = "https://management.azure.com/.default"
SIGN_IN = "Sign in: `az login`, and `az account set --subscription NAME` where there are several."
CLI_SECONDS = 30


class Account:
    """A sign-in and a subscription, each found at the first question. All of it raises NotDone."""

    token: Callable[[], AccessToken]
    subscription: Callable[[], str]  # its id

    def __init__(self, environment: Mapping[str, str] = os.environ, credential: TokenCredential | None = None) -> None:
        self.token = Once(lambda: _token(credential or _credential(environment)))
        self.subscription = Once(lambda: environment.get("ARM_SUBSCRIPTION_ID") or _cli_subscription())

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        """The one token, for every client: the Azure CLI would be asked anew each time."""
        return self.token()

    @property
    def principal(self) -> str:
        """The object id of whoever is signed in."""
        if not isinstance(found := _claims(self.token().token).get("oid"), str):
            raise NotDone("the sign-in does not say who it is (no `oid` in the token)", SIGN_IN)
        return found


def _cli_subscription() -> str:
    remedy = "Name it in ARM_SUBSCRIPTION_ID, or install the Azure CLI and sign in with `az login`."
    if shutil.which("az") is None:
        raise NotDone("it is not known which subscription: no ARM_SUBSCRIPTION_ID, and no Azure CLI", remedy)
    command = ["az", "account", "show", "--query", "id", "--output", "tsv"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=CLI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotDone(f"`az account show` took longer than {CLI_SECONDS} seconds", remedy) from None
    if said.returncode or not said.stdout.strip():
        raise NotDone("it is not known which subscription: `az account show` has none", SIGN_IN)
    return said.stdout.strip()


def _credential(environment: Mapping[str, str]) -> TokenCredential:
    from azure import identity

    tenant, client = (environment.get(f"ARM_{name}_ID", "") for name in ("TENANT", "CLIENT"))
    if tenant and client and (secret := environment.get("ARM_CLIENT_SECRET")):
        return identity.ClientSecretCredential(tenant, client, secret)
    if tenant and client and _on(environment, "ARM_USE_OIDC"):
        return identity.ClientAssertionCredential(tenant, client, lambda: _assertion(environment))
    if _on(environment, "ARM_USE_MSI"):
        return identity.ManagedIdentityCredential(client_id=client or None)
    return identity.AzureCliCredential(process_timeout=CLI_SECONDS)


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1")


def _assertion(environment: Mapping[str, str]) -> str:
    """The pipeline's own token, which Entra exchanges: given, in a file, or from the pipeline's endpoint."""
    if token := environment.get("ARM_OIDC_TOKEN"):
        return token
    if file := environment.get("ARM_OIDC_TOKEN_FILE_PATH") or environment.get("AZURE_FEDERATED_TOKEN_FILE"):
        return Path(file).read_text("utf-8").strip()
    names = ("ARM_OIDC_REQUEST", "ACTIONS_ID_TOKEN_REQUEST")
    url, token = (next(filter(None, (environment.get(f"{n}_{part}") for n in names)), "") for part in ("URL", "TOKEN"))
    if not url or not token:
        raise NotDone("ARM_USE_OIDC is set, and there is no token", "Give the job `permissions: id-token: write`.")
    audience, bearer = {"audience": "api://AzureADTokenExchange"}, {"Authorization": f"Bearer {token}"}
    body = web.ask_json(url, what="the pipeline's token", parameters=audience, headers=bearer)
    return body["value"]


def _token(credential: TokenCredential) -> AccessToken:
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        return credential.get_token(SCOPE)
    except ClientAuthenticationError as error:  # the first line; the rest lists what was tried
        raise NotDone(f"not signed in to Azure: {str(error).splitlines()[0]}", SIGN_IN) from None
    except (AzureError, OSError) as error:
        raise NotDone(f"the sign-in did not work: {error}", "Look at the network, and run it again.") from None


def _claims(token: str) -> Mapping[str, Any]:
    """What a JSON Web Token (RFC 7519) says; nothing where it is none. Azure checks it, not this program."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
