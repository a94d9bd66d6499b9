"""Certificates made on the spot."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make(name: str, *, days: int = 30) -> tuple[str, str]:
    """A certificate for a name, signed by itself, and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=400))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def put(folder: Path, name: str, *, days: int = 30, vaulted: bool = False) -> str:
    """Where the pod has them, beside the configuration's `folder` or in it; the certificate."""
    certificate, key = make(name, days=days)
    file = place(folder, vaulted)
    file.parent.mkdir(parents=True, exist_ok=True)
    # The Secrets Store writes what a vault holds in one file, the private key first.
    parts = {file: f"{key}{certificate}"} if vaulted else {file.with_name(f"{file.name}.key"): key, file: certificate}
    for path, text in parts.items():
        # As the kubelet does: never half a file.
        new = path.with_name("new")
        new.write_text(text)
        new.rename(path)
    return certificate


def place(folder: Path, vaulted: bool) -> Path:
    """The file that HAProxy is told of."""
    return (folder.parent / "certificate" if vaulted else folder) / "edge.pem"
