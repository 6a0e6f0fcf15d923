"""Static mappings of an attachment, changed as a whole: runtimes map ports after they attach, and unmap them before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from agent.addresses_here import AddressesHere
from agent.asking import Asker
from agent.attachment import Attachment, Mapped
from agent.attachment_files import Files, Forgotten
from agent.host import Host
from agent.local_errors import Away, Refusal

__all__ = ["MappingChanges", "unavailable"]

ASK_S = 4.0
UNDO_S = 1.5


class MappingChanges:
    """Those of one host. `programmed` waits until an attachment is in the kernel; `left`: set if something is to do."""

    def __init__(
        self, host: Host, asker: Asker, files: Files, addresses: AddressesHere,
        programmed: Callable[[Attachment], Awaitable[None]], left: asyncio.Event,
    ) -> None:
        self._host = host
        self._asker = asker
        self._files = files
        self._addresses = addresses
        self._programmed = programmed
        self._left = left

    async def change(self, known: Attachment, wanted: tuple[Mapped, ...]) -> Attachment:
        """These in place of those that it has: first what goes, then what comes; refused, what went comes back.

        Raises:
            Refusal
        """
        if known.leased:
            made = await self._addresses.map_by_lease(known, wanted)
            await self._host.again(mend=False)
            await self._programmed(made)
            return made
        going = [each for each in known.mappings if each not in wanted]
        if not self._asker.connected and len(wanted) + len(going) == len(known.mappings):
            return await self._unmap(known, wanted, going)
        coming = tuple(each for each in wanted if each not in known.mappings)
        await self._files.attachments.put(replace(known, coming=coming, changing=True))
        try:
            if going:
                await self._delete_mappings(known, going)
            made = known.with_mappings(wanted)
            if coming:
                await self._apply_mappings(made, coming)
            await self._programmed(made)
        except BaseException as error:
            try:
                async with asyncio.timeout(UNDO_S):
                    await self.restore(replace(known, coming=coming))
            except (Away, Refusal, TimeoutError):
                self._left.set()             # it is known on disk, and restored later
            if isinstance(error, Away):
                raise unavailable(error, known) from None
            raise
        await self._files.attachments.put(made)
        return made

    async def restore(self, known: Attachment) -> None:
        """Declare again what it had before a change that was cut off.

        Raises:
            Away, Refusal
        """
        if known.coming:
            await self._delete_mappings(known, known.coming)
        if known.mappings:
            await self._apply_mappings(known, known.mappings)
        await self._files.attachments.put(replace(known, coming=(), changing=False))

    async def _delete_mappings(self, known: Attachment, going: Sequence[Mapped]) -> None:
        refs = [("StaticMapping", known.tenant, each.name) for each in going]
        await self._asker.request("delete", {"refs": refs, "uids": known.uids()}, ASK_S)

    async def _unmap(self, known: Attachment, wanted: tuple[Mapped, ...], going: Sequence[Mapped]) -> Attachment:
        """Mappings go here and now; the controller is told later."""
        for each in going:
            ref = ("StaticMapping", known.tenant, each.name)
            await self._files.forgotten.put(Forgotten(each.uid, (ref,), {"/".join(ref): each.uid}))
        known = known.with_mappings(wanted)
        await self._files.attachments.put(known)
        await self._host.again(mend=False)
        self._left.set()
        return known

    async def _apply_mappings(self, attachment: Attachment, mappings: Sequence[Mapped]) -> None:
        documents = [attachment.mapping_document(each) for each in mappings]
        if documents:
            await self._asker.apply(documents, attachment.uids(), ASK_S)


def unavailable(error: Away, wanted: Attachment) -> Refusal:
    """What needs the controller and did not get it."""
    return Refusal("unavailable", f"{error}, and this host has no leased address for network {wanted.tenant}/"
                   f"{wanted.network}", "network", wanted.network, "start the controller, or try again later")

