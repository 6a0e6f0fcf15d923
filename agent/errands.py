"""What is left to do for runtimes when nobody waits for it: tell the controller, release what is gone."""

from __future__ import annotations

import asyncio
import time

import structlog

from agent.addresses_here import AddressesHere
from agent.asking import Asker
from agent.attachment_files import Files
from agent.attachments import Attachments
from agent.host import Host
from agent.local_errors import Away, Refusal
from agent.runtime_networks import RuntimeNetworks

__all__ = ["Errands"]

_log = structlog.get_logger("agent")

AGAIN_S = 0.5                               # between two attempts to tell


class Errands:
    """Those of one host."""

    def __init__(self, host: Host, asker: Asker, files: Files, attachments: Attachments,
                 networks: RuntimeNetworks, addresses: AddressesHere) -> None:
        self._host = host
        self._asker = asker
        self._files = files
        self._attachments = attachments
        self._networks = networks
        self._addresses = addresses

    async def tell(self) -> None:
        """Tell the controller what it does not know, as soon as it can be told. Never ends."""
        while True:
            await self._asker.came()
            try:
                await self._tell_all()
            except Away:
                await asyncio.sleep(AGAIN_S)
                continue
            work, gone = (asyncio.ensure_future(each) for each in (self._attachments.left.wait(), self._asker.went()))
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            work.cancel()
            if gone.done():
                self._addresses.forgive()
            gone.cancel()
            self._attachments.left.clear()

    async def _tell_all(self) -> None:
        for gone in self._files.forgotten.all():
            if gone.refs[0][0] == "Network":
                await self._networks.tell(gone)
            else:
                try:
                    await self._attachments.tell(gone)
                except Refusal as error:    # it is not ours any more
                    _log.warning("not deleted", what="/".join(gone.refs[0]), why=str(error))
                    await self._files.forgotten.remove(gone)
        for attachment in self._files.attachments.all():
            if attachment.leased:
                await self._attachments.declare(attachment.key)
            elif attachment.changing:
                try:
                    await self._attachments.restore(attachment.key)
                except Refusal as error:
                    _log.error("mappings of an endpoint cannot be restored; map it anew, or detach it",
                               endpoint=f"{attachment.tenant}/{attachment.name}", why=str(error))
        for tenant, name in {(each.tenant, each.network) for each in self._files.attachments.all()}:
            await self._addresses.provide(tenant, name)

    async def release(self) -> None:
        """Release what is gone, and what nobody took. Never ends."""
        since: dict[str, float] = {}        # by uid: when it was first seen so
        while True:
            moved, changed = self._host.moved, self._attachments.changed
            now = time.monotonic()
            going = {each[0].uid: each for each in self._attachments.lost.leaving()}
            since = {uid: since.get(uid, now) for uid in going}
            due = {uid: since[uid] + patience_s - now for uid, (_, patience_s, _) in going.items()}
            for uid in [uid for uid, left_s in due.items() if left_s <= 0]:
                attachment, _, why = going[uid]
                _log.info("released", runtime=attachment.runtime, why=why,
                          endpoint=f"{attachment.tenant}/{attachment.name}")
                await self._attachments.release(attachment.key, uid)
                del due[uid]
            waits = [asyncio.ensure_future(each.wait()) for each in (moved, changed)]
            await asyncio.wait(waits, timeout=min(due.values(), default=None), return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            changed.clear()
