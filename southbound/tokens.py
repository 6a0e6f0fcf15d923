"""The text of a join token: `sluice1.<base64url(secret)>.<SHA-256 of the CA certificate, hex>`.

The secret proves to the controller that the host may join; the fingerprint proves to the host that it speaks
to its controller. The controller keeps only the hash of the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass

from southbound.errors import TokenError

__all__ = ["JoinToken", "new_token", "parse_token"]

PREFIX = "sluice1"
SECRET_BYTES = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token taken apart. `secret` is not shown by `repr` and must not be logged."""

    secret: bytes
    fingerprint: str                        # SHA-256 over the DER of the CA certificate, 64 hex digits

    def __repr__(self) -> str:
        return f"JoinToken(fingerprint={self.fingerprint!r})"

    @property
    def text(self) -> str:
        """The token as the operator carries it."""
        secret = base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()
        return f"{PREFIX}.{secret}.{self.fingerprint}"

    @property
    def secret_hash(self) -> str:
        """SHA-256 of the secret, hex: what the controller stores and looks up.

        The secret has 256 random bits, so a plain hash cannot be searched (no salt or stretching needed).
        """
        return hashlib.sha256(self.secret).hexdigest()


def new_token(fingerprint: str) -> JoinToken:
    """Make a token for the CA with this fingerprint."""
    return JoinToken(secrets.token_bytes(SECRET_BYTES), fingerprint)


def parse_token(text: str) -> JoinToken:
    """Take a token's text apart.

    Raises:
        TokenError: not a token; the message does not repeat the text, which may hold a secret.
    """
    parts = text.strip().split(".")
    if len(parts) != 3 or parts[0] != PREFIX:
        raise TokenError(f"token: expected {PREFIX}.SECRET.FINGERPRINT as `sluice token create` prints it, "
                         f"found {len(parts)} parts in {len(text)} characters; copy the whole token")
    try:
        secret = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != SECRET_BYTES or not _FINGERPRINT.fullmatch(parts[2]):
        raise TokenError("token: the secret or the fingerprint is damaged; copy the whole token, or make a "
                         "new one with `sluice token create`")
    return JoinToken(secret, parts[2])
