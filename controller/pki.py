"""The controller's certificate authority (in progress: signatures are stable)."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Pki", "PkiError"]


class PkiError(Exception):
    """A key or certificate is missing, damaged or not acceptable; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Pki:
    """CA and server certificate of one controller, on disk in `directory`."""

    directory: Path
    fingerprint: str                        # SHA-256 over the CA certificate's DER, 64 hex digits
    ca_pem: bytes

    @classmethod
    def open(cls, directory: Path, names: Sequence[str] = ("localhost", "127.0.0.1")) -> Pki:
        """Open the CA, make it at first start; renew the server certificate when `names` changed or it nears its end.

        `names`: DNS names and IP addresses by which agents reach the controller (subject alternative names).
        """
        raise NotImplementedError

    def server_context(self) -> ssl.SSLContext:
        """TLS context for `SouthboundServer`."""
        raise NotImplementedError

    def sign(self, csr_pem: bytes, host: str) -> bytes:
        """Check a PKCS#10 request for common name `host` and return its client certificate as PEM.

        Raises:
            PkiError: bad signature, other common name, weak or unusual key.
        """
        raise NotImplementedError

    def make_token(self) -> tuple[str, str]:
        """A new join token: (text for the operator, secret hash for the store)."""
        raise NotImplementedError

    @staticmethod
    def token_hash(text: str) -> str:
        """The secret hash of a token's text, to look it up in the store. Raises `southbound.errors.TokenError`."""
        raise NotImplementedError
