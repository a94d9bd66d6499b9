"""Container registries: which digest is behind a reference, by the registry's HTTP API.

https://github.com/opencontainers/distribution-spec, with the anonymous token that public registries hand out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from planning.registry import AZURE_HOSTS
from preflight.web import LookupFailed, ask, ask_json

#: A repository without a host is Docker's: https://docs.docker.com/reference/cli/docker/image/pull/
DOCKER_HUB = "registry-1.docker.io"

#: Lists of platforms first: their digest is right on every node. https://github.com/opencontainers/image-spec
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Registries that take a token of Entra ID.
AZURE = re.compile("|".join(re.escape(host) + "$" for host in AZURE_HOSTS))
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:|$)")


def digest(repository: str, reference: str, entra: Callable[[], str] | None = None) -> str:
    """The digest behind a tag, or a digest itself where the registry has it. Raises LookupFailed.

    `entra` gives a token of Entra ID, which is sent to Azure's registries only, where one asks for a sign-in.
    """
    host, slash, name = repository.partition("/")
    if not slash or not re.search(r"[.:]|^localhost$", host):
        host, name = DOCKER_HUB, repository if slash else f"library/{repository}"
    scheme = "http" if _LOCAL.match(host) else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{reference}"
    what = f"the digest of {repository}{'@' if _DIGEST.fullmatch(reference) else ':'}{reference}"
    accept = {"Accept": ", ".join(MANIFESTS)}
    try:
        answer = ask(url, what=what, method="HEAD", headers=accept)
    except LookupFailed as failure:
        if failure.answer is None or failure.status != 401:
            raise
        challenge = failure.answer.headers.get("WWW-Authenticate", "")
        signed = _exchanged(challenge, what, host, entra()) if entra and AZURE.search(host) else _token(challenge, what)
        answer = ask(url, what=what, method="HEAD", headers={**accept, **signed})
    found = answer.headers.get("Docker-Content-Digest", "")
    if not _DIGEST.fullmatch(found):
        raise LookupFailed(f"{what}: {host} answered without one")
    return found


def _token(challenge: str, what: str) -> Mapping[str, str]:
    """The header that answers `Bearer realm="...",service="...",scope="..."`."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    if not challenge.lower().startswith("bearer ") or not realm.startswith(("https://", "http://127.0.0.1:")):
        raise LookupFailed(f"{what}: the registry wants a sign-in that this command does not have")
    body = ask_json(realm, what=what, parameters=fields)
    token = (body.get("token") or body.get("access_token")) if isinstance(body, Mapping) else None
    if not isinstance(token, str):
        raise LookupFailed(f"{what}: {realm} gave no token")
    return {"Authorization": f"Bearer {token}"}


def _exchanged(challenge: str, what: str, host: str, entra: str) -> Mapping[str, str]:
    """The same from an Azure registry, for whoever is signed in: https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md"""
    scope = dict(re.findall(r'(\w+)="([^"]*)"', challenge)).get("scope", "")
    scheme = "http" if _LOCAL.match(host) else "https"
    asked = {"grant_type": "access_token", "service": host, "access_token": entra}
    for step, gives in (("exchange", "refresh_token"), ("token", "access_token")):
        try:
            body = ask_json(f"{scheme}://{host}/oauth2/{step}", what=what, method="POST", form=asked)
        except LookupFailed as failure:
            if failure.status not in (401, 403):
                raise
            raise LookupFailed(f"{what}: {host} refuses this sign-in (HTTP {failure.status})", failure.answer) from None
        token = body.get(gives) if isinstance(body, Mapping) else None
        if not isinstance(token, str):
            raise LookupFailed(f"{what}: {host} gave no {gives.replace('_', ' ')}")
        asked = {"grant_type": "refresh_token", "service": host, "scope": scope, "refresh_token": token}
    return {"Authorization": f"Bearer {token}"}
