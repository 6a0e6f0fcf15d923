"""TLS connections to the controller, and what went wrong in words."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from southbound.channel import close_writer
from southbound.codec import decode, encode
from southbound.errors import ConnectionLost, SessionRefused, Unreachable, UntrustedController
from southbound.framing import CHUNK_BYTES, frame, read_frame, write_frame
from southbound.identity import split_address
from southbound.messages import Message, Refused

__all__ = ["DIAL_S", "Line", "dial"]

DIAL_S = 10.0                               # name, TCP and TLS; and again for the first answer
_NAME_MISMATCHES = frozenset([62, 64])      # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True, slots=True)
class Line:
    """A connection to the controller before there is a session."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def tls(self) -> ssl.SSLObject:
        """The TLS layer, for its certificates."""
        connection: ssl.SSLObject = self.writer.get_extra_info("ssl_object")
        return connection

    async def ask(self, message: Message, limit_bytes: int) -> Message:
        """Send the first message and return its answer.

        Raises:
            SessionRefused: the controller refused, with its reason; or its TLS did not accept our certificate.
            ConnectionLost: no answer in time.
            ProtocolError: what came is no message.
        """
        try:
            await write_frame(self.writer, frame(encode(message)), stall_s=DIAL_S)
            answer = decode(await read_frame(self.reader, limit_bytes=limit_bytes, idle_s=DIAL_S, stall_s=DIAL_S))
        except ConnectionLost as error:
            # In TLS 1.3 the server judges our certificate after the client believes the handshake is done.
            if isinstance(error.__cause__, ssl.SSLError):
                raise SessionRefused(f"the controller does not accept this host's certificate ({error}); it may "
                                     "have a new CA: run `sluice join` with a new token") from error
            raise ConnectionLost(f"no answer from the controller: {error}. If this stays so, it may not accept this "
                                 "host's certificate (its log says): run `sluice join` with a new token") from error
        if isinstance(answer, Refused):
            raise SessionRefused(answer.reason)
        return answer


@asynccontextmanager
async def dial(controller: str, context: ssl.SSLContext) -> AsyncIterator[Line]:
    """Connect to `HOST:PORT` and shake hands; the connection is closed at the end.

    Raises:
        Unreachable: no such name, no route, nobody listens, no TLS there, no answer in time.
        UntrustedController: the certificate is not by the CA of `context`, or not for this name.
    """
    reader, writer = await _open(controller, context)
    try:
        yield Line(reader, writer)
    finally:
        await close_writer(writer)


async def _open(controller: str, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(controller)
    try:
        async with asyncio.timeout(DIAL_S):
            return await asyncio.open_connection(host, port, ssl=context, server_hostname=host, limit=CHUNK_BYTES,
                                                 ssl_shutdown_timeout=1.0)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _NAME_MISMATCHES:
            raise UntrustedController(f"controller {controller}: its certificate is not for the name {host!r} "
                                      f"({error.verify_message}); connect by a name that it has, or start the "
                                      f"controller with --name {host}") from error
        raise UntrustedController(f"controller {controller}: its certificate is not by the CA that this host "
                                  f"knows ({error.verify_message}); check the address, or join again with a new "
                                  "token") from error
    except socket.gaierror as error:
        raise Unreachable(f"controller {controller}: cannot resolve {host!r}: {error.strerror}") from error
    except TimeoutError:
        raise Unreachable(f"controller {controller}: no answer within {DIAL_S:g} s; check address, route and "
                          "firewall") from None
    except ssl.SSLError as error:
        raise Unreachable(f"controller {controller}: no TLS 1.3 there ({error.reason}); is this the southbound "
                          "port?") from error
    except OSError as error:
        raise Unreachable(f"controller {controller}: {error.strerror or error}; is it running, is the address "
                          "right?") from error
