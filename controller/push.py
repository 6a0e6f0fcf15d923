"""Brings goal states to hosts: keeps the plan, one `Link` per host, and one pump per session.

It is the southbound `Handler`. After a commit it plans anew what changed and wakes the pumps of the hosts that
must be told something; nobody else hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import structlog

from controller.errors import Problem, Refused, Unavailable
from controller.facts import readable
from controller.host_requests import HostRequests
from controller.ledger import Ledger, Outcome
from controller.link import Link
from controller.pki import Pki, PkiError
from controller.planner import Plan, plan, replan
from controller.resources import API_VERSION
from controller.state import Ref, State
from controller.store import Report, StoreError
from southbound.errors import (
    HelloRefused,
    JoinRefused,
    ProtocolError,
    QueryFailed,
    SessionClosed,
    SouthboundError,
    TokenError,
)
from southbound.messages import (
    PROTOCOL_VERSION,
    Ack,
    Facts,
    FullSync,
    Hello,
    Join,
    Joined,
    Key,
    Reply,
    Request,
    Resync,
    Welcome,
)
from southbound.server import Session

KEEPALIVE_S = 5.0
QUERY_S = 10.0
REMEMBERED = 1000                           # revisions for which the concerned hosts are kept, for waits

_log = structlog.get_logger("controller.push")


class Push:
    """Goal states of all hosts and the sessions that carry them."""

    def __init__(self, ledger: Ledger, pki: Pki | None = None) -> None:
        """`pki` None: no host can join."""
        self._ledger = ledger
        self._pki = pki
        self._requests = HostRequests(ledger)
        self.plan: Plan = plan(ledger.state)
        self.links: dict[str, Link] = {}
        self._sessions: dict[str, Session] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._progress = asyncio.Event()
        self._told: dict[int, frozenset[str]] = {}      # revision -> hosts that it concerned; the last few
        self.on_status: list[Callable[[Iterable[Ref]], None]] = []
        ledger.on_commit.append(self._committed)

    # For the API

    def link(self, host: str) -> Link:
        """What is known of a host."""
        return self.links.get(host) or Link(host)

    def concerned(self, outcome: Outcome) -> set[str]:
        """Hosts that what was written concerns: those that must be told, and those that have a part of it."""
        hosts = set(self._told.get(outcome.revision, ()))
        for item in outcome.items:
            if item.ref.kind == "Host":
                hosts.add(item.ref.name)
            elif item.ref.kind == "Network":
                hosts.update(self.plan.hosts_of(item.ref))
            elif item.ref.tenant:
                hosts.update(self.plan.hosts_of(State.network_ref(item.stored)))
        return hosts

    async def wait_applied(self, hosts: Iterable[str], revision: int, timeout_s: float) -> list[str]:
        """Wait until every connected one of the hosts shows a revision; returns those that do not by then."""
        hosts = set(hosts)

        def behind() -> list[str]:
            return sorted(h for h in hosts if (link := self.links.get(h)) is not None and link.behind(revision))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while behind():
                    await self._progress.wait()
        return behind()

    async def query(self, host: str, what: str, args: dict[str, Any]) -> Any:
        """Ask the agent of a host.

        Raises:
            Unavailable: it is not connected, or has no good answer.
        """
        session = self._sessions.get(host)
        if session is None and self._ledger.state.is_external(host):
            raise Unavailable(Problem("unavailable", f"host {host} is external: it has no agent to ask", "host", host,
                                      "ask a host that has one"))
        if session is None:
            raise Unavailable(Problem("unavailable", f"host {host} is not connected", "host", host,
                                      f"start its agent: `sluice agent run` on {host}"))
        try:
            return await session.query(what, args, timeout_s=QUERY_S)
        except QueryFailed as error:
            raise Unavailable(Problem("unavailable", f"host {host} did not answer: {error}", "host", host,
                                      f"look at the agent's log on {host}")) from error

    # southbound.server.Handler

    async def on_join(self, join: Join) -> Joined:
        """Enrol a host; it is declared on the way if nobody has done so."""
        if self._pki is None:
            raise JoinRefused("this controller enrols nobody")
        try:
            secret_hash = self._pki.token_hash(join.token)
            certificate = self._pki.sign(join.csr_pem, join.host)
        except (TokenError, PkiError) as error:
            raise JoinRefused(str(error)) from error
        fate = await self._ledger.take_token(secret_hash, join.host)
        if fate != "taken":
            _log.warning("join refused", host=join.host, token=fate)
            reason = {"expired": "the token has expired", "other host": "the token is for another host"}
            raise JoinRefused(f"{reason.get(fate, 'the token is unknown or was used already')}; make one with "
                              f"`sluice token create {join.host}`")
        if self._ledger.state.host(join.host) is None:
            document = {"apiVersion": API_VERSION, "kind": "Host", "metadata": {"name": join.host}}
            try:
                await self._ledger.apply([document])
            except Refused as error:
                raise JoinRefused(str(error)) from error
        return Joined(certificate, self._pki.ca_pem)

    async def on_hello(self, session: Session, hello: Hello) -> Welcome:
        """A session begins: say what the host lacks, and keep saying it."""
        host = session.host
        if self._ledger.state.host(host) is not None:
            await self._ledger.save_report(host, Report(hello.agent, readable(hello.facts)))
        if self._ledger.state.host(host) is None:       # asked again: it may have gone while we saved
            raise HelloRefused(f"host {host} is not declared (any more); apply a Host {host}, or run "
                               "`sluice agent purge` on it")
        if self._ledger.state.is_external(host):
            raise HelloRefused(f"host {host} is declared external, which is one without an agent; apply a Host {host} "
                               "without external, or stop the agent")
        link = self.links.setdefault(host, Link(host))
        link.connect(hello.applied_revision)
        self._sessions[host] = session
        self._wake[host] = asyncio.Event()
        self._wake[host].set()
        self._pumps[host] = asyncio.create_task(self._pump(link, session, self._wake[host]))
        self._moved(host)
        return Welcome(PROTOCOL_VERSION, self._ledger.identity, KEEPALIVE_S)

    async def on_ack(self, session: Session, ack: Ack) -> None:
        """The agent applied a revision, or reports again how its objects are."""
        link = self.links[session.host]
        changed = link.acknowledge(ack)
        failed = [status for status in ack.objects if status.error]
        if failed:
            _log.warning("objects not programmed", host=session.host, revision=ack.revision, count=len(failed),
                         first=failed[0].error)
        self._wake[session.host].set()
        self._moved(session.host, changed)

    async def on_facts(self, session: Session, facts: Facts) -> None:
        """The host's surroundings changed."""
        await self._ledger.save_report(session.host, Report(session.hello.agent, readable(facts.facts)))
        networks = self._ledger.state.nat_networks_on(session.host)     # what overlaps them may have changed
        self._moved(session.host, [("network", network.uid) for network in networks])

    async def on_resync(self, session: Session, resync: Resync) -> None:
        """The agent wants everything."""
        _log.info("resync", host=session.host, reason=resync.reason)
        self.links[session.host].resync()
        self._wake[session.host].set()

    async def on_request(self, session: Session, request: Request) -> Reply:
        """A runtime on the host wants something."""
        try:
            return Reply(request.id, (), await self._requests.answer(session.host, request.what, request.args))
        except Refused as error:
            _log.info("request refused", host=session.host, what=request.what, why=str(error.problems[0]))
            return Reply(request.id, tuple(asdict(problem) for problem in error.problems), None)
        except StoreError as error:
            _log.error("request not stored", host=session.host, what=request.what, error=str(error))
            return Reply(request.id, (asdict(Problem("store", str(error), todo="see the controller's log")),), None)
        except (KeyError, TypeError, ValueError) as error:
            problem = Problem("invalid", f"the request {request.what!r} cannot be read: {error!r}", "args", "",
                              "use agent and controller of one version")
            return Reply(request.id, (asdict(problem),), None)

    async def on_disconnect(self, session: Session) -> None:
        """The session ended; the host goes on by itself."""
        host = session.host
        pump = self._pumps.pop(host)
        pump.cancel()
        await asyncio.wait({pump})
        del self._sessions[host], self._wake[host]
        self.links[host].disconnect()
        if self._ledger.state.host(host) is None or self._ledger.state.is_external(host):
            del self.links[host]
        self._moved(host)

    def _committed(self, outcome: Outcome, state: State) -> None:
        self.plan, patches = replan(self.plan, state, outcome.changes)
        self._told[outcome.revision] = frozenset(patches)
        self._told.pop(outcome.revision - REMEMBERED, None)
        for host, patch in patches.items():
            link = self.links.get(host)
            if link is not None:
                link.add(patch)
            if host in self._wake:
                self._wake[host].set()
        for change in outcome.changes:
            if change.ref.kind == "Host" and (change.after is None or state.is_external(change.ref.name)):
                self._forget(change.ref.name, "was deleted" if change.after is None else "is external now")

    def _forget(self, host: str, why: str) -> None:
        """A host was deleted: its session ends, and it cannot begin another."""
        session = self._sessions.get(host)
        if session is not None:
            session.close(f"host {host} {why}")
        else:
            self.links.pop(host, None)

    async def _pump(self, link: Link, session: Session, wake: asyncio.Event) -> None:
        """Send what is due, one message at a time, as long as the session lives."""
        while True:
            await wake.wait()
            wake.clear()
            message = link.next_message(self._ledger.state.revision, lambda: self.plan.goals(link.host))
            if message is None:
                continue
            _log.debug("push", host=link.host, revision=message.revision, full=isinstance(message, FullSync))
            try:
                await session.send(message)
            except ProtocolError as error:
                link.unsent(str(error))
                _log.error("goal state cannot be sent", host=link.host, error=str(error))
                self._moved(link.host)
            except (SessionClosed, SouthboundError) as error:
                _log.info("push stopped", host=link.host, reason=str(error))
                return

    def _moved(self, host: str, keys: Iterable[Key] = ()) -> None:
        """Wake whoever waits for progress, and tell watchers whose status may differ."""
        self._progress.set()
        self._progress = asyncio.Event()
        uids = self._ledger.state.uids
        refs = [Ref("Host", "", host), *(uids[uid] for kind, uid in sorted(keys)
                                         if kind in ("network", "port", "mapping") and uid in uids)]
        refs += dict.fromkeys(uids[uid] for kind, block in sorted(keys)     # "network/host/number"
                              if kind == "remotes" and (uid := block.partition("/")[0]) in uids)
        for listener in self.on_status:
            listener(refs)


__all__ = ["KEEPALIVE_S", "Push"]
