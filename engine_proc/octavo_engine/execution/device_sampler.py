"""Sampler for a device that works by itself: what it draws stays there until somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.wire import TokenLogprob
from octavo_engine.execution.processors import AskedRows, Processors
from octavo_engine.execution.sampler import Sampler, asked_logprobs, logprob_entries, nothing_allowed
from octavo_engine.execution.staging import Arrays
from octavo_engine.ops import Ops
from octavo_engine.scheduling.plan import SeqStart

__all__ = ["DeviceSampler", "Draw", "Fetched", "Held"]


@dataclass(slots=True)
class Draw:
    """What Ops.sample takes of the slots that draw in a step, on the device."""

    slots: Tensor  # int64
    parameters: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # temperature, top_k, top_p, min_p, seeds
    positions: Tensor
    entries: tuple[Tensor, Tensor, Tensor, Tensor]  # adjust_start, adjust_ids, adjust_scale, adjust_add
    mask: tuple[Tensor | None, Tensor | None]


@dataclass
class Held:
    """Rows that are drawn on the host, for logits processors; all that Ops.sample takes of them but their logits. What
    becomes of their slots afterwards does not change it. places: in the step's draws."""

    places: list[int]
    asked: AskedRows
    tops: list[int | None]
    arguments: tuple[Tensor | None, ...]


@dataclass
class Fetched:
    """Tokens and what Ops.logprobs gives for them, of rows that each want `tops` best ones; on the host when done."""

    tops: list[int]
    tensors: list[Tensor]

    def entries(self) -> list[TokenLogprob]:
        return logprob_entries(self.tensors, self.tops)


class DeviceSampler(Sampler):
    """The parameters of the slots that draw stay on the device for as long as the same ones draw.

    Positions come from the plan, so that nothing has to be counted: a step can run before the one ahead of it is known
    to have succeeded, and again when it has not. The output is counted where `commit` tells of it; what depends on it
    (adjustments, constraints) is right for slots that do not draw in two steps at a time.
    """

    def __init__(self, ops: Ops, *, max_num_seqs: int, vocab_size: int, processors: Processors | None = None) -> None:
        super().__init__(ops, max_num_seqs=max_num_seqs, vocab_size=vocab_size, processors=processors)
        self._prompt_length = np.zeros(max_num_seqs, np.int32)
        self._kept_slots: list[int] = []
        self._kept_index = np.zeros(0, np.intp)
        self._kept_parameters: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
        self._kept_entries: tuple[Tensor, Tensor, Tensor, Tensor]
        self._kept: Tensor  # the slots on the device
        device = ops.device
        self._nothing = (  # entries that change nothing
            torch.zeros(max_num_seqs + 1, dtype=torch.int32, device=device),
            torch.zeros(0, dtype=torch.int32, device=device),
            torch.zeros(0, dtype=torch.float32, device=device),
            torch.zeros(0, dtype=torch.float32, device=device),
        )
        self._device_masks: Tensor | None = None
        self._new_masks: dict[int, NDArray[np.int32]] = {}  # by slot, rows that the device has not been given

    def start(self, start: SeqStart) -> None:
        super().start(start)
        self._prompt_length[start.slot] = len(start.prompt)
        if start.slot in self._masked and start.slot not in self._constraints:
            assert self._masks is not None
            self._new_masks[start.slot] = self._masks[start.slot]

    def end(self, slot: int) -> None:
        super().end(slot)
        self._kept_slots = []
        self._new_masks.pop(slot, None)

    def positions(self, slots: list[int], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
        """Of the tokens drawn, in the outputs. lengths: of the sequences, the tokens of this step included."""
        positions: NDArray[np.int32] = lengths - self._prompt_length[slots]
        return positions

    def arrays(self, slots: list[int], ahead: list[list[int]] | None = None) -> Arrays:
        """What a draw needs besides that is not on the device."""
        changed = self._kept_slots != slots
        index = np.array(slots, np.intp) if changed else self._kept_index
        arrays: Arrays = {}
        if changed:
            arrays["draw_slots"] = index
            arrays["temperature"], arrays["top_k"] = self._temperature[index], self._top_k[index]
            arrays["top_p"], arrays["min_p"] = self._top_p[index], self._min_p[index]
            arrays["seeds"] = self._seed[index]
        if self._adjustments:
            start, ids, scale, add = self._entries(slots, ahead)
            arrays["adjust_start"], arrays["adjust_ids"] = start.numpy(), ids.numpy()
            arrays["adjust_scale"], arrays["adjust_add"] = scale.numpy(), add.numpy()
        if self._masked:
            arrays["mask_rows"] = self._mask_row[index]
        return arrays

    def masks(self, slots: list[int]) -> Arrays:
        """Rows of masks that the device has to be given before these slots draw: of those that started, and of those
        whose grammar has gone on."""
        rows, self._new_masks = self._new_masks, {}
        if self._constraints:
            rows |= {slot: self._constraints[slot].row for slot in slots if slot in self._constraints}
        if not rows:
            return {}
        return {"mask_slots": np.array(list(rows), np.int64), "mask_bits": np.concatenate(list(rows.values()))}

    def write_masks(self, sent: dict[str, Tensor]) -> None:
        """sent: what `masks` gave, on the device."""
        if "mask_slots" in sent:
            slots = sent["mask_slots"]
            self._masks_there().index_copy_(0, slots, sent["mask_bits"].view(slots.shape[0], -1))

    def _masks_there(self) -> Tensor:
        """[max_num_seqs, ceil(V / 32)] on the device."""
        if self._device_masks is None:
            assert self._masks is not None
            self._device_masks = torch.zeros(self._masks.shape, dtype=torch.int32, device=self._ops.device)
        return self._device_masks

    def prepare(self, slots: list[int], sent: dict[str, Tensor], positions: Tensor) -> Draw:
        """sent: what `arrays` gave for these slots, on the device; positions: as of `positions`, there too."""
        if "temperature" in sent:
            self._keep(slots, sent)
        mask: tuple[Tensor | None, Tensor | None] = (None, None)
        if "mask_rows" in sent:
            mask = self._masks_there(), sent["mask_rows"]
        entries = self._kept_entries
        if "adjust_start" in sent:
            entries = sent["adjust_start"], sent["adjust_ids"], sent["adjust_scale"], sent["adjust_add"]
        return Draw(self._kept, self._kept_parameters, positions, entries, mask)

    def _keep(self, slots: list[int], sent: dict[str, Tensor]) -> None:
        self._kept_slots, self._kept_index, self._kept = slots.copy(), np.array(slots, np.intp), sent["draw_slots"]
        self._kept_parameters = sent["temperature"], sent["top_k"], sent["top_p"], sent["min_p"], sent["seeds"]
        start, ids, scale, add = self._nothing
        if len(slots) >= len(start):  # there are drafts
            start = start.new_zeros(len(slots) + 1)
        self._kept_entries = start[: len(slots) + 1], ids, scale, add

    def sample(self, logits: Tensor, draw: Draw) -> Tensor:
        """[R] int32, one token a row; -1 where nothing is left to choose."""
        return self._ops.sample(logits, *draw.parameters, draw.positions, *draw.entries, *draw.mask)

    def held(self, slots: list[int], lengths: NDArray[np.int32]) -> Held | None:
        """Those of the slots that ask for processors. They do not draw in the step that is ahead, if there is one (see
        scheduling.sequence), so their output is complete. lengths: as for `positions`."""
        if not self._processors.asked:
            return None
        every = self._processors.rows(slots)
        places = [i for i, asked in enumerate(every) if asked]
        if not places:
            return None
        own = [slots[i] for i in places]
        rows = self._gather(own)
        positions = torch.from_numpy(lengths[places] - self._prompt_length[rows.index])
        mask: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._masked:
            assert self._masks is not None
            number = np.arange(len(own), dtype=np.int32)
            used = np.where(self._mask_row[rows.index] < 0, np.int32(-1), number)
            mask = torch.from_numpy(self._masks[rows.index]), torch.from_numpy(used)
        arguments = *rows.parameters[:-1], positions, *self._entries(own), *mask
        return Held(places, [every[i] for i in places], [self._logprobs.get(slot) for slot in own], arguments)

    def draw_held(self, held: Held, logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
        """logits [len(held.places), V] on the host, as the model gave them. Raises ProcessorFailed.

        Every backend draws the same token from the same logits, so where a row is drawn does not show.
        """
        host = self._processors.host or self._ops
        processed = self._processors.apply(logits, held.asked, keep=True)
        drawn = host.sample(processed, *held.arguments)  # type: ignore[arg-type]
        return drawn.tolist(), asked_logprobs(host, logits, drawn, held.tops)

    def asked(self, slots: list[int], held: Held | None = None) -> tuple[list[int], list[int]]:
        """Which of the slots want logprobs, by their place, and how many best tokens each; those that are held not."""
        if not self._logprobs:
            return [], []
        others = set(held.places) if held is not None else set()
        found = [
            (i, self._logprobs[slot]) for i, slot in enumerate(slots) if slot in self._logprobs and i not in others
        ]
        return [i for i, _ in found], [top for _, top in found]

    def commit(self, slots: list[int], tokens: list[int]) -> None:
        """The step went through and drew these. Raises NothingAllowed; then nothing has changed."""
        if tokens and min(tokens) < 0:
            raise nothing_allowed(slots[tokens.index(min(tokens))])
        self._push(slots, tokens)
