"""Container registries: which digest is behind a reference, by the registry's HTTP API.

https://github.com/opencontainers/distribution-spec, with the anonymous token that public registries hand out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:|$)")


def digest(repository: str, reference: str) -> str:
    """The digest behind a tag, or a digest itself where the registry has it. Raises LookupFailed."""
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
        answer = ask(url, what=what, method="HEAD", headers={**accept, **_token(challenge, what)})
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
