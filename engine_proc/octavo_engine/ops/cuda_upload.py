"""What a step sends to the device: many small host tensors as one copy out of pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Copied", "Staging"]

_LINE = 64
_PAGE = 4096
_BUFFERS = 3  # the step that runs, the one being sent, and one for a second send of the same step


class Copied(Protocol):
    """Tells when what was enqueued so far is done (torch.cuda.Event)."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class _NoEvent:
    """Where copies are done when they return."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Staging:
    """Pinned buffers, used in turn: one is written again only after the copy out of it is done.

    Not for two threads at once. A buffer grows to the largest that was asked of it and stays.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(_BUFFERS)]
        self._filled = [x.view(torch.int32) for x in self._buffers]
        self._arrays: list[NDArray[np.int32]] = [x.numpy() for x in self._filled]
        self._parts = list(self._filled)  # of each what was sent last
        self._events: list[Copied] = [self._event() for _ in range(_BUFFERS)]
        self._turn = 0

    def _event(self) -> Copied:
        return torch.cuda.Event() if self._pinned else _NoEvent()  # type: ignore[no-untyped-call]

    def room(self, words: int) -> NDArray[np.int32]:
        """Pinned memory for so many words, to be filled before `send`."""
        self._take(4 * words)
        if self._parts[self._turn].shape[0] != words:
            self._parts[self._turn] = self._filled[self._turn][:words]
        return self._arrays[self._turn]

    def send(self) -> Tensor:
        """What was written to the last `room`, on its way to the device: int32, a new tensor."""
        block = self._parts[self._turn].to(self.device, non_blocking=True, copy=True)
        self._events[self._turn].record()
        return block

    @property
    def staged(self) -> int:
        """Names what was written to the last `room`, for `copy`."""
        return self._turn

    def copy(self, staged: int, there: Tensor) -> None:
        """Send it to where it always goes: int32, as long as the room."""
        there.copy_(self._parts[staged], non_blocking=True)
        self._events[staged].record()

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors on the device, those of the host in one copy; one that is there already is returned as it is."""
        if not any(x.is_cpu for x in tensors):
            return list(tensors)
        places: list[tuple[int, int]] = []
        size = 0
        for x in tensors:
            nbytes = x.nbytes if x.device.type == "cpu" else 0
            places.append((size, size + nbytes))
            size += -(-nbytes // _LINE) * _LINE
        if not size:
            return list(tensors)
        self._take(size)
        staged = self._buffers[self._turn][:size]
        for x, (start, stop) in zip(tensors, places, strict=True):
            if stop > start:
                staged[start:stop].view(x.dtype).view(x.shape).copy_(x)
        block = torch.empty(size, dtype=torch.uint8, device=self.device)
        block.copy_(staged, non_blocking=True)
        self._events[self._turn].record()
        return [
            block[start:stop].view(x.dtype).view(x.shape) if stop > start else x
            for x, (start, stop) in zip(tensors, places, strict=True)
        ]

    def _take(self, nbytes: int) -> None:
        """The next buffer's turn, with room for so many bytes."""
        self._turn = (self._turn + 1) % _BUFFERS
        self._events[self._turn].synchronize()
        if self._arrays[self._turn].nbytes < nbytes:
            buffer = torch.empty(-(-nbytes // _PAGE) * _PAGE, dtype=torch.uint8, pin_memory=self._pinned)
            self._buffers[self._turn], self._filled[self._turn] = buffer, buffer.view(torch.int32)
            self._parts[self._turn] = self._filled[self._turn]
            self._arrays[self._turn] = self._filled[self._turn].numpy()
