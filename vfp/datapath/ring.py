"""Records that a program sends to user space by a ring buffer (BPF_MAP_TYPE_RINGBUF)."""

from __future__ import annotations

import ctypes
import errno
from types import TracebackType
from typing import Self

from vfp.datapath.libbpf import RING_SAMPLE, check, check_pointer, library

__all__ = ["RingBuffer"]


class RingBuffer:
    """The reading end of one ring buffer map; one reader at a time. A context manager.

    Wait on `fd` (readable while there are records), then call `consume()`. When nobody reads, the buffer
    fills and the program's later records are lost; it does not wait.
    """

    def __init__(self, map_fd: int) -> None:
        """Map the buffer into this process. `map_fd` stays the caller's and may be closed.

        Raises:
            KernelRefused: EINVAL when it is no ring buffer.
        """
        self._records: list[bytes] = []
        self._limit = 0
        # Kept: libbpf holds only the address.
        self._sample = RING_SAMPLE(self._take)
        pointer = library().ring_buffer__new(map_fd, self._sample, None, None)
        self._handle: int | None = check_pointer(pointer, f"open ring buffer of map fd {map_fd}")

    @property
    def fd(self) -> int:
        """An epoll descriptor, readable while there are records; stays this object's."""
        return check(library().ring_buffer__epoll_fd(self._opened()), "get the ring buffer's descriptor")

    def consume(self, limit: int = 65536) -> list[bytes]:
        """The records that are there, oldest first, at most `limit`; the rest stays. Does not wait."""
        self._records, self._limit = [], limit
        result = library().ring_buffer__consume(self._opened())
        if result != -errno.ECANCELED:
            check(result, "read the ring buffer")
        records, self._records = self._records, []
        return records

    def _take(self, context: int | None, data: int, size: int) -> int:
        """ring_buffer_sample_fn. An error stops libbpf after this record, which counts as read."""
        self._records.append(ctypes.string_at(data, size))
        return -errno.ECANCELED if len(self._records) >= self._limit else 0

    def close(self) -> None:
        """Unmap. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            library().ring_buffer__free(handle)

    def _opened(self) -> int:
        if self._handle is None:
            raise ValueError("the ring buffer is closed")
        return self._handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
