"""The agent's side of the session with the controller: goal state in, acknowledgements, facts and answers out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from agent.asking import Asker
from agent.goals import NotAtBase, apply_delta, from_sync
from agent.host import Host
from agent.runtimes_here import software
from southbound import client
from southbound.errors import SouthboundError
from southbound.identity import Identity
from southbound.messages import PROTOCOL_VERSION, Ack, Delta, Facts, FullSync, Hello, Resync

__all__ = ["Session"]

_log = structlog.get_logger("agent")

OnQuery = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Session:
    """Keeps one host and its controller together, as long as both live."""

    def __init__(self, host: Host, on_query: OnQuery, asker: Asker | None = None) -> None:
        self._host = host
        self._asker = asker if asker is not None else Asker()
        self._on_query = on_query
        self._boot = os.urandom(8).hex()

    async def keep(self, identity_dir: Path) -> None:
        """Connect, serve, and connect again for ever.

        Raises:
            IdentityError: the identity directory has become unusable.
        """
        await client.run(identity_dir, self.hello, self.serve, self._on_query)

    def hello(self, identity: Identity) -> Hello:
        """Who we are and what we have."""
        return Hello(
            version=PROTOCOL_VERSION,
            host=identity.host,
            agent=software(),
            boot=self._boot,
            applied_revision=self._host.goals.revision,
            facts=self._host.facts,
        )

    async def serve(self, session: client.AgentSession) -> None:
        """One session, until it is lost.

        A revision counts only within one controller's database. If the database is another one than that
        of our goal state, nothing but a full sync is taken.
        """
        host = self._host
        store = session.welcome.store
        foreign = host.goals.revision != 0 and host.store != store
        _log.info("connected", revision=host.goals.revision, store=store)
        if foreign:
            await session.send(Resync(f"our revision is of database {host.store or 'unknown'}, not {store}"))

        async def report(message: Ack | Facts) -> None:
            try:
                await session.send(message)
            except SouthboundError as error:    # the session is lost; the next one starts with all of this
                _log.info("not reported", error=str(error))

        if host.ack is not None and not foreign:
            await session.send(host.ack)
        host.report = None if foreign else report
        self._asker.follow(session)
        try:
            async for message in session:
                match message:
                    case FullSync():
                        foreign = False
                        goals = from_sync(message)
                    case Delta() if foreign:
                        continue
                    case Delta():
                        try:
                            goals = apply_delta(host.goals, message)
                        except NotAtBase as error:
                            _log.warning("resync", why=str(error))
                            await session.send(Resync(str(error)))
                            continue
                try:
                    ack = await host.take(goals, store)
                except OSError as error:    # nothing is acknowledged that is not on disk
                    raise SouthboundError(f"goal state not kept on disk: {error}") from error
                await session.send(ack)
                host.report = report
        finally:
            self._asker.follow(None)
            host.report = None
