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


def put(folder: Path, name: str, *, days: int = 30) -> str:
    """Into a folder, as the pod has them; the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = make(name, days=days)
    # As the kubelet does: never half a file.
    for file, text in (("edge.pem.key", key), ("edge.pem", certificate)):
        (folder / "new").write_text(text)
        (folder / "new").rename(folder / file)
    return certificate
