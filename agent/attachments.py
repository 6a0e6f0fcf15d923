"""Attachments of this host: made, looked at, handed over, released. One operation at a time for each.

Whatever is asked of the controller is on disk before it is asked, so that a new process finds it: what was not answered
is undone, what must go goes when the controller can be told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog

from agent.addresses_here import AddressesHere
from agent.asking import Asker
from agent.attach_words import Arguments, mapped_of, new_attachment
from agent.attachment import RUNTIME_LABEL, Attachment, Mapped
from agent.attachment_files import Files, Forgotten
from agent.goals import Goals
from agent.host import Host
from agent.leased import compose
from agent.local_errors import Away, Refusal
from agent.lost import Lost
from agent.mapping_changes import MappingChanges, unavailable
from agent.standing import Standing
from agent.views import attachment_view
from southbound.messages import MappingGoal, PortGoal
from vswitch.errors import NamespaceMissing, VSwitchError

__all__ = ["Attachments", "Identify"]

_log = structlog.get_logger("agent")

ASK_S = 4.0                                 # what needs the controller fails within 5 s
PROGRAM_S = 3.0                             # from the controller's answer until the port is programmed
UNDO_S = 1.5


Identify = Callable[[str], Awaitable[str]]  # see `vswitch.switch.Switch.identify`


class Attachments:
    """Those of one host. `name`: the host's."""

    def __init__(
        self, name: str, host: Host, asker: Asker, files: Files, addresses: AddressesHere, identify: Identify,
    ) -> None:
        self._name = name
        self._host = host
        self._asker = asker
        self._files = files
        self._addresses = addresses
        self._identify = identify
        self._alone: dict[tuple[str, str], tuple[asyncio.Lock, list[object]]] = {}
        self.lost = Lost(host, files)
        self.left = asyncio.Event()         # something is left to tell the controller
        self._changes = MappingChanges(host, asker, files, addresses, self._programmed, self.left)
        self.changed = asyncio.Event()      # an attachment came or was taken
        host.compose = self.compose
        host.standing = self.standing

    def compose(self, goals: Goals) -> Goals:
        """What is to be programmed."""
        return compose(goals, (each for each in self._files.attachments.all() if each.goals),
                       self._files.forgotten.all())

    def standing(self) -> Mapping[str, Standing]:
        """What the reconciler must know of them."""
        return {each.uid: Standing(each.taken, each.namespace) for each in self._files.attachments.all()}

    async def start(self) -> None:
        """Before anything is programmed: nobody waits for what was not answered."""
        for each in self._files.attachments.all():
            if each.state == "asked":
                _log.info("attach was cut off; undone", runtime=each.runtime, endpoint=f"{each.tenant}/{each.name}")
                await self._forget(each)
            elif self._files.forgotten.get(each.uid, "") is not None:
                await self._files.attachments.remove(each)
        if self._files.forgotten.all() or any(each.leased for each in self._files.attachments.all()):
            self.left.set()

    async def attach(self, arguments: Arguments) -> dict[str, Any]:
        """Make a port. A repetition finds it."""
        wanted = await self._in_namespace(new_attachment(arguments))
        async with self._one_at_a_time(wanted.key):
            known = self._files.attachments.get(*wanted.key)
            if known is not None and known.namespace != wanted.namespace:
                await self._release(known)  # its namespace went, and this is another of the same name
                known = None
            if known is not None:
                return await self._existing(known, wanted)
            await self._make_way(wanted, wanted.mappings)
            other = next(iter(self._files.named(wanted.tenant, wanted.name)), None)
            if other is not None:
                raise Refusal("exists", f"endpoint {wanted.tenant}/{wanted.name} is that of {other.runtime} {other.id}",
                              "name", wanted.name, "choose another name")
            return attachment_view(await self._make(wanted), self._host)

    async def _in_namespace(self, wanted: Attachment) -> Attachment:
        """With what its namespace is called, which must be there."""
        path = wanted.place.path
        if not path:
            return wanted
        field = "pid" if wanted.place.pid else "netns"
        try:
            return replace(wanted, namespace=await self._identify(path))
        except NamespaceMissing as error:
            raise Refusal("gone", error.asked, field, error.found, error.todo) from None
        except VSwitchError as error:
            raise Refusal("invalid", error.asked, field, error.found, error.todo) from None

    async def check(self, arguments: Arguments) -> dict[str, Any]:
        """How an attachment is."""
        arguments.only("runtime", "id")
        known = self._known(arguments)
        error = self._error(known)
        return attachment_view(known, self._host) | {"ready": error == "", "error": error or ""}

    async def taken(self, arguments: Arguments) -> dict[str, Any]:
        """The runtime takes the far end."""
        arguments.only("runtime", "id")
        async with self._one_at_a_time((arguments.runtime(), arguments.text("id"))):
            known = self._known(arguments)
            if not known.place.handed:
                raise Refusal("invalid", f"{known.name} has its link in a namespace already", "id", known.id,
                              "only what was attached with veth: true is taken")
            if not known.taken:
                await self._files.attachments.put(replace(known, taken=True))
                self.changed.set()
        return {}

    async def map(self, arguments: Arguments) -> dict[str, Any]:
        """These mappings in place of those that it had."""
        arguments.only("runtime", "id", "mappings")
        async with self._one_at_a_time((arguments.runtime(), arguments.text("id"))):
            known = self._known(arguments)
            wanted = mapped_of(known.name, arguments.given.get("mappings", []), known.mappings)
            if wanted != known.mappings:
                await self._make_way(known, wanted)
                known = await self._changes.change(known, wanted)
            return attachment_view(known, self._host)

    async def detach(self, arguments: Arguments) -> dict[str, Any]:
        """Release it. Repeating it is no error."""
        arguments.only("runtime", "id")
        key = arguments.runtime(), arguments.text("id")
        async with self._one_at_a_time(key):
            known = self._files.attachments.get(*key)
            if known is not None:
                await self._release(known)
        return {"existed": known is not None}

    async def list(self, arguments: Arguments) -> dict[str, Any]:
        """All of a runtime, or of all."""
        arguments.only("runtime")
        runtime = arguments.runtime() if arguments.given.get("runtime") else ""
        found = [each for each in self._files.attachments.all() if runtime in ("", each.runtime)]
        return {"attachments": [attachment_view(each, self._host) for each in sorted(found, key=lambda one: one.key)]}

    async def gc(self, arguments: Arguments) -> dict[str, Any]:
        """Release what a runtime does not know any more."""
        arguments.only("runtime", "scope", "valid")
        if "valid" not in arguments.given:
            raise Refusal("invalid", "gc needs it", "valid", "nothing", "give the ids that stay, [] for none")
        runtime, scope, valid = arguments.runtime(), arguments.text("scope", ""), set(arguments.texts("valid"))
        going = [each for each in self._files.attachments.all()
                 if (each.runtime, each.scope) == (runtime, scope) and each.id not in valid]
        await asyncio.gather(*(self.release(each.key, each.uid) for each in going))
        return {"released": sorted(each.id for each in going)}

    async def release(self, key: tuple[str, str], uid: str) -> None:
        """Release this very attachment, if it is there still."""
        async with self._one_at_a_time(key):
            known = self._files.attachments.get(*key)
            if known is not None and known.uid == uid:
                await self._release(known)

    # Steps

    async def _make_way(self, wanted: Attachment, mappings: Sequence[Mapped]) -> None:
        """Release what the runtime lost and would be in the way."""
        for each in await self.lost.in_the_way(wanted, mappings):
            _log.info("released", runtime=each.runtime, why="its runtime lost it, and asks for what it has",
                      endpoint=f"{each.tenant}/{each.name}")
            await self.release(each.key, each.uid)

    async def _existing(self, known: Attachment, wanted: Attachment) -> dict[str, Any]:
        if known.asked != wanted.asked:
            different = sorted(name for name in known.asked.keys() | wanted.asked.keys()
                               if known.asked.get(name) != wanted.asked.get(name))
            raise Refusal("exists", f"{known.id} is attached already, as {known.tenant}/{known.name}, with other"
                          f" {', '.join(different)}", different[0], str(known.asked.get(different[0], "nothing")),
                          "detach it first, or repeat the same arguments")
        if self._error(known) is not None and not known.leased:     # somebody deleted its endpoint, say
            known = await self._declare(known)
            await self._programmed(known)
        return attachment_view(known, self._host) | {"existing": True}

    async def _make(self, wanted: Attachment) -> Attachment:
        made = replace(wanted, since_s=time.time())
        await self._files.attachments.put(made)
        try:
            made = await self._addresses.pick(made, made.asked.get("ranges", ()))
            made = await self._declare(made)
            await self._programmed(made)
            await self._addresses.hold(made)
            made = replace(made, state="up")
            await self._files.attachments.put(made)
        except BaseException:
            await self._undo(made)
            raise
        self.changed.set()
        self.left.set()                     # there may be too few leased addresses now
        return made

    async def _declare(self, wanted: Attachment) -> Attachment:
        """Have the controller make it; while that is away, make it by a lease."""
        if not self._asker.connected and (made := await self._addresses.by_lease(wanted)) is not None:
            return await self._by_ourselves(made)
        try:
            await self._tell_of(wanted)
            reply = await self._asker.apply(wanted.documents(self._name), wanted.uids(), ASK_S)
        except Away as error:
            if (made := await self._addresses.by_lease(wanted)) is not None:
                return await self._by_ourselves(made)
            raise unavailable(error, wanted) from None
        except Refusal as error:
            if error.field != "metadata.uid" or not await self._remove_stale(wanted):
                raise
            return await self._declare(wanted)
        uids = {(item["kind"], item["name"]): str(item["uid"]) for item in reply["items"]}
        known = replace(wanted, uid=uids["Endpoint", wanted.name], mappings=tuple(
            replace(each, uid=uids["StaticMapping", each.name]) for each in wanted.mappings))
        if known != wanted:                 # it was declared just so by an agent whose state was lost
            await self._files.attachments.put(known)
        return known

    async def _by_ourselves(self, made: Attachment) -> Attachment:
        """What a lease allows is programmed now, and declared when the controller is back."""
        await self._host.again(mend=False)
        self.left.set()
        return made

    async def declare(self, key: tuple[str, str]) -> None:
        """Tell the controller of what was made by a lease; if it refuses that, the port goes.

        Raises:
            Away
        """
        async with self._one_at_a_time(key):
            known = self._files.attachments.get(*key)
            if known is None or not known.leased:
                return
            try:
                await self._asker.apply(known.documents(self._name), known.uids(), ASK_S)
            except Refusal as error:
                _log.error("an endpoint that was attached while the controller was away is refused, and goes",
                           endpoint=f"{known.tenant}/{known.name}", why=f"{error} ({error.found}); {error.todo}")
                await self._release(known)
                return
            await self._told(known)
            await self._files.attachments.put(replace(known, goals=""))
            await self._host.again(mend=False)

    async def _told(self, known: Attachment) -> None:
        """Wait until the controller has told this host of what it was told.

        Raises:
            Away: it does not.
        """
        keys = {(PortGoal.kind, known.uid), *((MappingGoal.kind, each.uid) for each in known.mappings)}
        try:
            async with asyncio.timeout(ASK_S):
                while not keys <= self._host.goals.objects.keys():
                    await self._host.moved.wait()
        except TimeoutError:
            raise Away(f"endpoint {known.tenant}/{known.name} did not come within {ASK_S:g} s") from None

    async def _remove_stale(self, wanted: Attachment) -> bool:
        """Whether the name was that of an endpoint which an agent here made for the runtime, and lost; it is gone."""
        try:
            reply = await self._asker.request("get", {"refs": [wanted.refs()[0]]}, ASK_S)
            found = reply["items"][0]
            if found["spec"].get("host") != self._name or found["labels"].get(RUNTIME_LABEL) != wanted.runtime:
                return False
            await self._asker.request("delete", {"refs": wanted.refs()}, ASK_S)
        except (Away, Refusal):
            return False
        return True

    async def restore(self, key: tuple[str, str]) -> None:
        """Declare again what an attachment had before a `map` that was cut off.

        Raises:
            Away, Refusal
        """
        async with self._one_at_a_time(key):
            known = self._files.attachments.get(*key)
            if known is not None and known.changing:
                await self._changes.restore(known)

    async def _programmed(self, made: Attachment) -> None:
        """Wait until port and mappings are in the kernel.

        Raises:
            Refusal: they cannot be.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(PROGRAM_S):
                while (error := self._error(made)) is None:
                    await self._host.moved.wait()
                if error:
                    gone = self._host.outcome is not None and made.uid in self._host.outcome.gone
                    raise Refusal("gone" if gone else "failed", error, todo="see the agent's log")
                return
        raise Refusal("timeout", f"the port was not programmed within {PROGRAM_S:g} s", todo="see the agent's log")

    def _error(self, made: Attachment) -> str | None:
        """What is wrong with port or mappings; empty: nothing. None: they are not programmed, not known here at all."""
        keys = [(PortGoal.kind, made.uid), *((MappingGoal.kind, each.uid) for each in made.mappings)]
        statuses = [self._host.statuses.get(key) for key in keys]
        found = [status for status in statuses if status is not None]
        error = next((status.error for status in found if status.error), "")
        if error or len(found) == len(keys):
            return error
        return None

    # Going

    async def _undo(self, made: Attachment) -> None:
        """Nothing is left of what was refused."""
        known = self._files.attachments.get(*made.key) or made
        _log.info("attach undone", runtime=made.runtime, endpoint=f"{made.tenant}/{made.name}")
        await self._forget(known)
        await self._go(known.uid, UNDO_S)

    async def _release(self, known: Attachment) -> None:
        await self._forget(known)
        await self._go(known.uid, ASK_S)
        if any(gone.refs[0][:3] == ("Network", known.tenant, known.network) for gone in self._files.forgotten.all()):
            self.left.set()                 # its network goes with the last one in it

    async def _forget(self, known: Attachment) -> None:
        await self._files.forgotten.put(Forgotten.of(known))
        await self._files.attachments.remove(known)
        await self._addresses.let_go(known)

    async def _go(self, uid: str, timeout_s: float) -> None:
        """What is forgotten goes: by the controller, or, when that is away, here and now, and is told later."""
        gone = self._files.forgotten.get(uid, "")
        if gone is None:
            return
        if self._asker.connected:
            with suppress(Away, Refusal, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.tell(gone)
                    return
        if (PortGoal.kind, uid) in self._host.statuses:
            await self._host.again(mend=False)
        self.left.set()

    async def tell(self, gone: Forgotten) -> None:
        """Have the controller delete what is forgotten.

        Raises:
            Away, Refusal
        """
        await self._asker.request("delete", {"refs": gone.refs, "uids": gone.uids}, ASK_S)
        keys = {(kind, uid) for uid in gone.uids.values() for kind in (PortGoal.kind, MappingGoal.kind)}
        try:
            async with asyncio.timeout(ASK_S):
                while keys & self._host.goals.objects.keys() or keys & self._host.statuses.keys():
                    await self._host.moved.wait()
        except TimeoutError:
            raise Away(f"this host was not told within {ASK_S:g} s that {gone.refs[0][2]} is deleted") from None
        await self._files.forgotten.remove(gone)

    async def _tell_of(self, wanted: Attachment) -> None:
        """What had the name before goes first."""
        names = {(kind, tenant, name) for kind, tenant, name in wanted.refs()}
        for gone in self._files.forgotten.all():
            if names.intersection(gone.refs) and gone.uid != wanted.uid:
                await self.tell(gone)

    def _known(self, arguments: Arguments) -> Attachment:
        key = arguments.runtime(), arguments.text("id")
        known = self._files.attachments.get(*key)
        if known is None:
            raise Refusal("not_found", f"{key[0]} has attached nothing of this name", "id", key[1], "attach it first")
        return known

    @asynccontextmanager
    async def _one_at_a_time(self, key: tuple[str, str]) -> AsyncIterator[None]:
        lock, users = self._alone.setdefault(key, (asyncio.Lock(), []))
        me = object()
        users.append(me)
        try:
            async with lock:
                yield
        finally:
            users.remove(me)
            if not users:
                del self._alone[key]
