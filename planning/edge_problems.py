"""What of the edge's settings cannot stand, and what of its certificate somebody should know."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import TYPE_CHECKING

from planning.edge import ROUTES
from planning.findings import Finding, Problem, Severity

if TYPE_CHECKING:
    from planning.settings import EdgeSettings

KEY = "aks-vllm:edge"
HASH = 'printf %s "$KEY" | sha256sum'
#: cert-manager renews when a third of 90 days is left.
RENEW_DAYS = 30


def problems(edge: EdgeSettings, source: str, *, vaulted: bool) -> Iterator[Problem]:
    """Everything that is wrong with them, beyond types and ranges. `vaulted`: the certificate is in a vault."""
    tls = vaulted or edge.tls_secret is not None

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        return Problem(key=f"{KEY}.{key}", value=value, limit=limit, source=source, remedy=remedy)

    if edge.access == "public" and not tls:
        remedy = "set edge.tls-secret or key-vault.certificate, or access to internal; docs/edge.md says how"
        yield problem(
            "tls-secret", None, "is required with access: public, or keys and prompts travel in clear", remedy
        )
    if edge.access == "public" and not edge.keys:
        remedy = f"set edge.keys with the output of `{HASH}`, or access to internal"
        yield problem("keys", "{}", "is required with access: public, or everybody on the internet may use it", remedy)
    for path in edge.paths:
        if path not in ROUTES:
            yield problem("paths", path, "is not a route that can be opened", f"those are {', '.join(ROUTES)}")
    if not edge.paths:
        yield problem("paths", "[]", "opens no route", "remove the line for the default ones")
    names: dict[str, str] = {}
    for name, key in edge.keys.items():
        first = names.setdefault(key.sha256, name)
        if first != name:
            limit = f"is the hash of {first}'s key too: the two could not be told apart"
            yield problem(f"keys.{name}.sha256", "(hidden)", limit, "give each client a key of its own")
    if edge.certificate is not None:
        for key, value, limit, remedy in _certificate(edge, edge.certificate, tls=tls):
            yield problem(key, value, limit, remedy)


def findings(edge: EdgeSettings, today: date | None) -> Iterator[Finding]:
    """A certificate that has ended or soon will. `today`: None leaves it out."""
    end = _end(edge.certificate) if edge.certificate else None
    if end is None or today is None:
        return
    left = (end.date() - today).days
    if left < RENEW_DAYS:
        when = f"ends in {left} days" if left > 0 else f"ended {-left} days ago"
        yield Finding(
            severity=Severity.WARNING,
            subject="stack",
            message=f"The edge's certificate {when}, on {end.date()}.",
            remedy="Renew it where it is kept, and aks-vllm:edge.certificate with it.",
        )


def _certificate(edge: EdgeSettings, pem: str, *, tls: bool) -> Iterator[tuple[str, object, str, str]]:
    if "PRIVATE KEY" in pem:
        remedy = "replace that key, as it was readable, and put the certificate alone here"
        yield "certificate", "(hidden)", "holds a private key, which belongs into the Secret or the vault only", remedy
        return
    names = _names(pem)
    if names is None:
        yield "certificate", "(PEM)", "is not an X.509 certificate in PEM", "as `openssl x509 -in tls.crt` prints it"
        return
    if not tls:
        limit = "is required with edge.certificate, which is only the public part"
        yield "tls-secret", None, limit, "name the Secret (or key-vault.certificate) that has it with its key"
    if edge.host is None:
        yield (
            "host",
            None,
            "is required with edge.certificate",
            f"for example host: {names[0] if names else 'its name'}",
        )
    elif not any(_matches(edge.host, name) for name in names):
        limit = f"is not a name of the certificate, which is for {', '.join(names) or 'none'}"
        yield "host", edge.host, limit, "choose one of its names, or get a certificate for this one"


def _matches(host: str, name: str) -> bool:
    """A wildcard stands for one label: https://www.rfc-editor.org/rfc/rfc6125#section-6.4.3"""
    host, name = host.lower(), name.lower()
    return host == name or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def _names(pem: str) -> list[str] | None:
    """The DNS names of the first certificate; None where it is none."""
    from cryptography import x509  # only stacks with a certificate load it

    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        return []
    except ValueError:
        return None


def _end(pem: str) -> datetime | None:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError:
        return None
