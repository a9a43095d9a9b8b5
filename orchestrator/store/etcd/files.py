"""Whether the PEM files for etcd can be used at all. Called once, before the first connection.

gRPC says of a key that is another certificate's only that a handshaker was not made, which looks
like an etcd that is away: the orchestrator would wait for ever. While it runs, files are replaced
one after the other, and a pair that does not fit is a matter of a moment: nobody asks here then.
"""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from orchestrator.store.etcd.settings import EtcdTls
from orchestrator.store.port import StoreUnusable


def check(tls: EtcdTls) -> None:
    """Raises StoreUnusable."""
    _certificate(tls.ca)
    certificate = _certificate(tls.certificate)
    try:
        key = load_pem_private_key(content(tls.key), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreUnusable(f"{tls.key} holds no private key that can be read") from error
    if key.public_key() != certificate.public_key():
        raise StoreUnusable(
            f"the key {tls.key} does not belong to the certificate {tls.certificate}: "
            "`edge-orchestrator ca etcd` makes both in one folder; carry them together"
        )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(content(path))[0]
    except ValueError as error:
        raise StoreUnusable(f"{path} holds no certificate that can be read") from error


def content(path: Path) -> bytes:
    """Raises StoreUnusable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreUnusable(f"the certificate file of etcd {path}: {error.strerror}") from error
