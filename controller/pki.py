"""The controller's certificate authority: its own CA, its server certificate, and the certificates of hosts.

Files in the directory (0700): `ca-key.pem` (0600) and `ca.pem`, made once; `server.pem` (0600), key and chain in one
file so that they are replaced together. Each is written whole or not at all, and what is missing at the next start is
made from what is there; only a lost CA key cannot be mended.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from southbound import tls
from southbound.durable import write_file
from southbound.tokens import new_token, parse_token

__all__ = ["Pki", "PkiError"]

CA_DAYS = 3650
SERVER_DAYS = 825
SERVER_RENEW_DAYS = 30
HOST_DAYS = 1825
MAX_CSR_BYTES = 16 << 10
MAX_NAME_CHARACTERS = 64                    # X.520 ub-common-name
CLOCK_SKEW = timedelta(hours=1)             # a host whose clock is behind must accept a fresh certificate
_CURVES = (ec.SECP256R1, ec.SECP384R1)


class PkiError(Exception):
    """A key or certificate is missing, damaged or not acceptable; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Pki:
    """CA and server certificate of one controller."""

    directory: Path
    fingerprint: str                        # SHA-256 over the CA certificate's DER, 64 hex digits
    ca_pem: bytes
    _ca: x509.Certificate = field(repr=False)
    _ca_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def open(cls, directory: Path, names: Sequence[str] = ("localhost", "127.0.0.1")) -> Pki:
        """Open the CA; make it at first start. Renew the server certificate if `names` changed or it nears its end.

        `names`: DNS names and IP addresses by which agents reach the controller (subject alternative names).

        Raises:
            PkiError: no names, a file is damaged, the CA's key is lost or the CA expired.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        key = _ca_key(directory)
        ca = _ca_certificate(directory, key)
        pki = cls(directory, ca.fingerprint(hashes.SHA256()).hex(), ca.public_bytes(_PEM), ca, key)
        pki._renew_server(names)
        return pki

    def server_context(self) -> ssl.SSLContext:
        """TLS context for `SouthboundServer`."""
        return tls.server_context(self.directory / "server.pem", self.directory / "ca.pem")

    def sign(self, csr_pem: bytes, host: str) -> bytes:
        """Check a PKCS#10 request for common name `host` and return its client certificate as PEM.

        Only the name and the key are taken from the request; extensions that it asks for are ignored.

        Raises:
            PkiError: not a request, bad signature, other common name, weak or unusual key.
        """
        request = _load_csr(csr_pem)
        names = [str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [host] or not 0 < len(host) <= MAX_NAME_CHARACTERS:
            raise PkiError(f"certificate request: common name must be the host {host!r} (at most "
                           f"{MAX_NAME_CHARACTERS} characters), found {names!r}")
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
            raise PkiError("certificate request: expected an EC key on P-256 or P-384, found "
                           f"{type(key).__name__}; join with `sluice join`")
        certificate = self._issue(host, key, HOST_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return certificate.public_bytes(_PEM)

    def make_token(self) -> tuple[str, str]:
        """A new join token: (text for the operator, hash of its secret for the store)."""
        token = new_token(self.fingerprint)
        return token.text, token.secret_hash

    @staticmethod
    def token_hash(text: str) -> str:
        """The hash under which the store has the token with this text. Raises `southbound.errors.TokenError`."""
        return parse_token(text).secret_hash

    def _renew_server(self, names: Sequence[str]) -> None:
        wanted = tuple(dict.fromkeys(names))
        if not wanted:
            raise PkiError("server certificate: needs at least one DNS name or IP address of the controller")
        path = self.directory / "server.pem"
        if path.exists() and self._serves(path, wanted):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(wanted[0][:MAX_NAME_CHARACTERS], key.public_key(), SERVER_DAYS,
                                  ExtendedKeyUsageOID.SERVER_AUTH, wanted)
        write_file(path, _private_pem(key) + certificate.public_bytes(_PEM) + self.ca_pem)

    def _serves(self, path: Path, names: Sequence[str]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            certificate.verify_directly_issued_by(self._ca)
            present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            lasts = certificate.not_valid_after_utc - datetime.now(UTC)
            return list(present) == _general_names(names) and lasts > timedelta(days=SERVER_RENEW_DAYS)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False                    # damaged or of an older CA: a new one is made

    def _issue(self, common_name: str, key: ec.EllipticCurvePublicKey, days: int, usage: x509.ObjectIdentifier,
               names: Sequence[str]) -> x509.Certificate:
        """A leaf certificate with one extended key usage; RFC 5280 4.2, as VERIFY_X509_STRICT wants it."""
        now = datetime.now(UTC)
        ends = min(now + timedelta(days=days), self._ca.not_valid_after_utc)
        builder = (x509.CertificateBuilder()
                   .subject_name(_name(common_name)).issuer_name(self._ca.subject).public_key(key)
                   .serial_number(x509.random_serial_number())
                   .not_valid_before(max(now - CLOCK_SKEW, self._ca.not_valid_before_utc)).not_valid_after(ends)
                   .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                   .add_extension(_key_usage(digital_signature=True), critical=True)
                   .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
                   .add_extension(_authority(self._ca_key), critical=False))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())


_PEM = serialization.Encoding.PEM


def _ca_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    path = directory / "ca-key.pem"
    if not path.exists():
        if (directory / "ca.pem").exists():
            raise PkiError(f"{path}: the CA's key is lost, its certificate is there. Restore the key from a backup; "
                           f"or remove {directory} and let every host join again")
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(path, _private_pem(key))
        return key
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"{path}: damaged ({error}); restore it from a backup") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path}: expected an EC key, found {type(loaded).__name__}; restore it from a backup")
    path.chmod(0o600)
    return loaded


def _ca_certificate(directory: Path, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    path = directory / "ca.pem"
    if not path.exists():                   # first start, or the last one ended between key and certificate
        certificate = _make_ca(key)
        write_file(path, certificate.public_bytes(_PEM), 0o644)
        return certificate
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise PkiError(f"{path}: damaged ({error}); restore it from a backup or any host's identity/ca.pem") from error
    if certificate.public_key() != key.public_key():
        raise PkiError(f"{path}: is not for ca-key.pem; restore both from the same backup")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise PkiError(f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; remove {directory} and let "
                       "every host join again")
    return certificate


def _make_ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.now(UTC)
    serial = x509.random_serial_number()
    name = _name(f"Sluice CA {serial:x}"[:MAX_NAME_CHARACTERS])   # two controllers' CAs are told apart in errors
    return (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(serial).not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_authority(key), critical=False)
            .sign(key, hashes.SHA256()))


def _load_csr(csr_pem: bytes) -> x509.CertificateSigningRequest:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise PkiError(f"certificate request: longer than {MAX_CSR_BYTES} bytes, found {len(csr_pem)}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"certificate request: not a PKCS#10 request in PEM: {error}") from error
    if not valid:
        raise PkiError("certificate request: its signature is not by its own key")
    return request


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    out: list[x509.GeneralName] = []
    for name in names:
        try:
            out.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                out.append(x509.DNSName(name))
            except ValueError as error:
                raise PkiError(f"server certificate: {name!r} is no DNS name or IP address: {error}") from error
    return out


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False,
               crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign,
                         content_commitment=False, key_encipherment=False, data_encipherment=False,
                         key_agreement=False, encipher_only=False, decipher_only=False)
