"""TLS 1.3 contexts for both ends, and what can be read from a handshake.

The controller has its own CA (`controller.pki`); nothing here trusts the system's roots. Session tickets are
off: a resumed session would not show a client certificate again.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from southbound.errors import UntrustedController

__all__ = ["Peer", "agent_context", "ca_of_chain", "fetch_context", "peer_of", "server_context",
           "trusting_context"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end by its verified certificate."""

    common_name: str
    certificate_sha256: str                 # over the DER, hex


def server_context(chain_and_key: Path, ca: Path) -> ssl.SSLContext:
    """The controller's context: client certificates are asked for, checked against `ca`, and may be absent.

    `chain_and_key`: PEM with the private key, the server certificate and the CA certificate. The CA is part
    of the chain because a joining host gets it from the handshake.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(chain_and_key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return context


def agent_context(key: Path, certificate: Path, ca: Path) -> ssl.SSLContext:
    """An enrolled agent's context: shows its certificate, trusts only `ca`, checks the controller's name."""
    context = trusting_context(ca.read_text(encoding="ascii"))
    context.load_cert_chain(certificate, key)
    return context


def trusting_context(ca_pem: str) -> ssl.SSLContext:
    """A client context without certificate that trusts only this CA and checks the controller's name."""
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.load_verify_locations(cadata=ca_pem)
    return context


def fetch_context() -> ssl.SSLContext:
    """A client context that checks nothing, to look at an unknown controller's chain. Send nothing on it."""
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    return context


def peer_of(connection: ssl.SSLObject) -> Peer | None:
    """Who is at the other end; None when no certificate was shown. Only for contexts that verify."""
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return None
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    common_name = str(names[0].value) if len(names) == 1 else ""
    return Peer(common_name, hashlib.sha256(der).hexdigest())


def ca_of_chain(connection: ssl.SSLObject, fingerprint: str) -> str:
    """The certificate with this SHA-256 `fingerprint` in the chain that the peer presented, as PEM.

    Raises:
        UntrustedController: it is not there.
    """
    chain = _presented_chain(connection)
    for der in chain:
        if hashlib.sha256(der).hexdigest() == fingerprint:
            return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")
    seen = hashlib.sha256(chain[-1]).hexdigest() if chain else "no certificate"
    raise UntrustedController(
        f"fingerprint mismatch: the token is for a controller whose CA has SHA-256 {fingerprint}, the one "
        f"that answered presents {seen}; nothing was sent. Check the address, or make a token there")


def _presented_chain(connection: ssl.SSLObject) -> list[bytes]:
    """DER certificates as the peer sent them. Public since Python 3.13; before, only on the inner object."""
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return [bytes(der) for der in public()]
    inner = connection._sslobj              # type: ignore[attr-defined]
    encoding_der = 2                        # _ssl.ENCODING_DER
    chain = inner.get_unverified_chain() or ()
    return [bytes(certificate.public_bytes(encoding_der)) for certificate in chain]
