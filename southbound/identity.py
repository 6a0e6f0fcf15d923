"""Who an agent is: its key, its certificate, the CA and the controller, as files in `STATE/identity`.

`STATE/identity` is a link to a directory `STATE/.identity-*` that is written completely before the link is turned to
it: joining again replaces the whole identity at once or not at all. Directories that no link names are left-overs of
an interrupted join; the next one removes them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from southbound.durable import sync_directory, write_file
from southbound.errors import IdentityError

__all__ = ["Draft", "Identity", "draft_identity", "load_identity", "split_address"]

_LINK = "identity"
_DIRECTORY_PREFIX = ".identity-"


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity directory of an enrolled agent."""

    directory: Path
    host: str                               # common name of the certificate
    controller: str                         # "host:port"
    expires: datetime                       # UTC

    @property
    def key(self) -> Path:
        """Private key, PEM, 0600."""
        return self.directory / "key.pem"

    @property
    def certificate(self) -> Path:
        """Client certificate, PEM."""
        return self.directory / "cert.pem"

    @property
    def ca(self) -> Path:
        """The controller's CA certificate, PEM."""
        return self.directory / "ca.pem"


@dataclass(frozen=True, slots=True)
class Draft:
    """An identity in the making: the key is on disk, the certificate is still to come."""

    state_dir: Path
    directory: Path
    host: str
    csr_pem: bytes

    def complete(self, certificate_pem: bytes, ca_pem: bytes, controller: str) -> Identity:
        """Check the certificate, store everything and make it `state_dir/identity`.

        Raises:
            IdentityError: the certificate is not for our key and name, or not by this CA.
        """
        _check(certificate_pem, ca_pem, (self.directory / "key.pem").read_bytes(), self.host)
        write_file(self.directory / "cert.pem", certificate_pem, 0o644)
        write_file(self.directory / "ca.pem", ca_pem, 0o644)
        write_file(self.directory / "controller", f"{controller}\n".encode(), 0o644)
        link = self.state_dir / _LINK
        if link.exists() and not link.is_symlink():
            raise IdentityError(f"{link}: expected a link made by `sluice join`, found a directory or file; move it "
                                "away and join with a new token")
        turned = self.directory / "link"    # made inside our own directory, so that no name can be taken
        turned.symlink_to(self.directory.name)
        turned.replace(link)
        sync_directory(self.state_dir)
        return load_identity(link)


@contextmanager
def draft_identity(state_dir: Path, host: str) -> Iterator[Draft]:
    """Make a key (EC P-256) and a certificate request in `state_dir`; what is not completed is removed.

    Raises:
        IdentityError: `state_dir` cannot be written.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX, dir=state_dir))   # 0700
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(directory / "key.pem", key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    except OSError as error:
        raise IdentityError(f"state directory {state_dir}: cannot write the identity there: {error}") from error
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    try:
        yield Draft(state_dir, directory, host, request.public_bytes(serialization.Encoding.PEM))
    finally:
        _sweep(state_dir)


def _sweep(state_dir: Path) -> None:
    """Remove every identity directory that the link does not name."""
    link = state_dir / _LINK
    current = link.readlink().name if link.is_symlink() else ""
    for directory in state_dir.glob(f"{_DIRECTORY_PREFIX}*"):
        if directory.name != current:
            shutil.rmtree(directory, ignore_errors=True)


def load_identity(directory: Path) -> Identity:
    """Read an identity directory (`STATE/identity`) and check that its parts belong together.

    Raises:
        IdentityError: something is missing, damaged, expired or from different joins; says what to do.
    """
    target = Path(os.path.realpath(directory))   # one identity, also when the link is turned meanwhile
    try:
        parts = {name: (target / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem", "controller")}
        controller = parts["controller"].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if Path(os.path.realpath(directory)) != target:
            return load_identity(directory)      # joined again while we read: the old one is gone
        raise IdentityError(f"{directory}: this host is not enrolled, or its identity is damaged ({error}); run "
                            "`sluice join` with a token from `sluice token create`") from error
    split_address(controller)
    certificate = _check(parts["cert.pem"], parts["ca.pem"], parts["key.pem"])
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise IdentityError(f"{directory}/cert.pem: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; run "
                            "`sluice join` with a new token")
    return Identity(target, _common_name(certificate), controller, certificate.not_valid_after_utc)


def _check(certificate_pem: bytes, ca_pem: bytes, key_pem: bytes, host: str = "") -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        ca = x509.load_pem_x509_certificate(ca_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IdentityError(f"identity: key, certificate or CA is damaged, or the CA did not sign the certificate: "
                            f"{type(error).__name__} {error}; join again with a new token") from error
    if key.public_key() != certificate.public_key():
        raise IdentityError("identity: cert.pem is not for key.pem; join again with a new token")
    if host and _common_name(certificate) != host:
        raise IdentityError(f"identity: asked for a certificate for {host!r}, got one for "
                            f"{_common_name(certificate)!r}; join again with a token for this host")
    return certificate


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPv6]:PORT` taken apart.

    Raises:
        IdentityError: no port, or not a port number.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""                           # an IPv6 address without brackets: where does it end?
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise IdentityError(f"controller: expected HOST:PORT (or [IPv6]:PORT), found {text!r}")
    return host, int(port)
