"""The CA survives restarts and crashes, and signs only what it should."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller import pki as pki_module
from controller.pki import Pki, PkiError
from southbound.errors import TokenError
from southbound.tokens import parse_token


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.open(tmp_path / "pki", ["sluice.example", "10.0.0.1"])


def request(*names: str, key: object = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)   # type: ignore[arg-type]


def server_certificate(pki: Pki) -> x509.Certificate:
    return x509.load_pem_x509_certificate((pki.directory / "server.pem").read_bytes())


def test_files_are_private_and_reopening_changes_none(pki: Pki) -> None:
    before = {path.name: path.read_bytes() for path in pki.directory.iterdir()}
    assert set(before) == {"ca-key.pem", "ca.pem", "server.pem"}
    assert pki.directory.stat().st_mode & 0o777 == 0o700
    for name in ("ca-key.pem", "server.pem"):
        assert (pki.directory / name).stat().st_mode & 0o777 == 0o600
    again = Pki.open(pki.directory, ["sluice.example", "10.0.0.1"])
    assert again.fingerprint == pki.fingerprint
    assert {path.name: path.read_bytes() for path in pki.directory.iterdir()} == before


def test_the_ca_lasts_ten_years_and_may_only_sign_leaves(pki: Pki) -> None:
    ca = x509.load_pem_x509_certificate(pki.ca_pem)
    assert ca.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3640)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert ca.fingerprint(hashes.SHA256()).hex() == pki.fingerprint


def test_the_server_certificate_has_the_names_and_follows_them(pki: Pki) -> None:
    names = server_certificate(pki).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["sluice.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1")]
    Pki.open(pki.directory, ["other.example"])
    names = server_certificate(pki).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["other.example"]


def test_the_server_certificate_is_renewed_near_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pki_module, "SERVER_DAYS", 29)
    pki = Pki.open(tmp_path)
    old = server_certificate(pki)
    monkeypatch.setattr(pki_module, "SERVER_DAYS", 825)
    Pki.open(tmp_path)
    assert server_certificate(pki).serial_number != old.serial_number


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_server_certificate_is_made_anew(pki: Pki, damage: bytes) -> None:
    (pki.directory / "server.pem").write_bytes(damage)
    assert isinstance(Pki.open(pki.directory).server_context(), ssl.SSLContext)


def test_a_start_that_ended_between_key_and_certificate_is_completed(pki: Pki) -> None:
    key = (pki.directory / "ca-key.pem").read_bytes()
    (pki.directory / "ca.pem").unlink()
    (pki.directory / "server.pem").unlink()
    again = Pki.open(pki.directory)
    assert (pki.directory / "ca-key.pem").read_bytes() == key
    assert again.sign(request("h1"), "h1")


def test_a_lost_or_damaged_ca_key_is_not_replaced_silently(pki: Pki) -> None:
    path = pki.directory / "ca-key.pem"
    path.write_bytes(b"rubbish")
    with pytest.raises(PkiError, match=r"ca-key\.pem: damaged"):
        Pki.open(pki.directory)
    path.unlink()
    with pytest.raises(PkiError, match="the CA's key is lost"):
        Pki.open(pki.directory)
    Pki.open(pki.directory.parent / "other")
    (pki.directory.parent / "other" / "ca-key.pem").rename(path)
    with pytest.raises(PkiError, match=r"is not for ca-key\.pem"):
        Pki.open(pki.directory)


def test_names_are_needed_and_must_be_names(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="at least one"):
        Pki.open(tmp_path, [])
    with pytest.raises(PkiError, match="no DNS name"):
        Pki.open(tmp_path, ["bücher.example"])


def test_a_host_certificate_is_for_that_host_as_tls_client_only(pki: Pki) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = x509.load_pem_x509_certificate(pki.sign(request("h1", key=key), "h1"))
    assert certificate.subject.rfc4514_string() == "CN=h1"
    assert certificate.public_key() == key.public_key()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca_pem))


def test_extensions_that_a_request_asks_for_are_ignored(pki: Pki) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (x509.CertificateSigningRequestBuilder()
           .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "h1"),
                                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "admins")]))
           .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
           .sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    certificate = x509.load_pem_x509_certificate(pki.sign(csr, "h1"))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.subject.rfc4514_string() == "CN=h1"


def test_bad_requests_are_refused_with_what_is_wrong(pki: Pki) -> None:
    good = request("h1")
    damaged = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    damaged[-1] ^= 1                        # in the signature
    cases = [
        (request("h2"), r"common name must be the host 'h1'.*found \['h2'\]"),
        (request("h1", "h2"), "common name"), (request(), "common name"),
        (request("h1", key=rsa.generate_private_key(65537, 2048)), "P-256 or P-384, found RSAPublicKey"),
        (request("h1", key=ed25519.Ed25519PrivateKey.generate()), "found Ed25519PublicKey"),
        (request("h1", key=ec.generate_private_key(ec.SECP192R1())), "P-256 or P-384"),
        (b"rubbish", "not a PKCS#10 request"), (b"", "not a PKCS#10 request"), (bytes(20000), "longer than"),
        (x509.load_der_x509_csr(bytes(damaged)).public_bytes(serialization.Encoding.PEM), "signature"),
    ]
    for csr, text in cases:
        with pytest.raises(PkiError, match=text):
            pki.sign(csr, "h1")
    with pytest.raises(PkiError, match="at most 64"):
        pki.sign(request("h1"), "")


def test_tokens_carry_a_secret_and_the_fingerprint(pki: Pki) -> None:
    text, secret_hash = pki.make_token()
    token = parse_token(f"  {text}\n")
    assert token.fingerprint == pki.fingerprint
    assert token.secret_hash == secret_hash == pki.token_hash(text)
    assert pki.make_token()[0] != text
    assert text.split(".")[1] not in repr(token)


@pytest.mark.parametrize("text", ["", "x", "sluice1", "sluice2.AAAA.00", "sluice1.AAAA." + "0" * 64,
                                  "sluice1." + "A" * 43 + ".zz", "sluice1." + "?" * 43 + "." + "0" * 64, "a.b.c.d"])
def test_a_damaged_token_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(TokenError, match="whole token") as caught:
        parse_token(text)
    assert len(text) < 9 or text not in str(caught.value)
