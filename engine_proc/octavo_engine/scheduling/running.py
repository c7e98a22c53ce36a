"""Who has a slot: sequences that decode, whose prompt is being computed, or that wait for other beams; all by rank."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection

from octavo_engine.scheduling.plan import SeqStart
from octavo_engine.scheduling.sequence import Sequence

__all__ = ["Running"]


def _rank(seq: Sequence) -> tuple[int, int, int]:
    return seq.rank


class Running:
    """A choice that will fork from another's prompt has a slot before it stands in `decoding`.

    parked: beams that have drawn, while others of their group have not.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.decoding: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.parked: list[Sequence] = []
        self.slots: list[Sequence | None] = [None] * max_num_seqs
        self.free_slots = list(range(max_num_seqs - 1, -1, -1))
        self.ends: list[int] = []  # slots that became free and are not yet told to the runner

    def __len__(self) -> int:
        return len(self.slots) - len(self.free_slots)

    def at(self, slot: int) -> Sequence:
        """Raises KeyError for a free slot."""
        sequence = self.slots[slot]
        if sequence is None:
            raise KeyError(f"slot {slot} is free")
        return sequence

    def begin(self, seq: Sequence) -> SeqStart:
        """Take a slot; there is a free one."""
        slot = self.free_slots.pop()
        self.slots[slot] = seq
        return seq.begin(slot)

    def prefill(self, seq: Sequence) -> None:
        insort(self.prefilling, seq, key=_rank)

    def decode(self, seq: Sequence) -> None:
        insort(self.decoding, seq, key=_rank)

    def park(self, seq: Sequence) -> None:
        self.decoding.remove(seq)
        insort(self.parked, seq, key=_rank)

    def pop_last(self) -> Sequence:
        """Take out the one of largest rank; one runs. It keeps its slot."""
        running = max(filter(None, (self.decoding, self.prefilling, self.parked)), key=lambda r: r[-1].rank)
        return running.pop()

    def remove_ended(self, but: Collection[Sequence]) -> None:
        """Take out what has ended, but for some. They keep their slots."""
        self.decoding = [seq for seq in self.decoding if seq.finish_reason is None or seq in but]
        self.prefilling = [seq for seq in self.prefilling if seq.finish_reason is None or seq in but]
        self.parked = [seq for seq in self.parked if seq.finish_reason is None]

    def vacate(self, seq: Sequence) -> None:
        """Give the slot back."""
        self.ends.append(seq.slot)
        self.slots[seq.slot] = None
        self.free_slots.append(seq.slot)
        seq.slot = -1

    def take_ends(self) -> list[int]:
        ends, self.ends = self.ends, []
        return ends

    def check(self) -> None:
        """Raises AssertionError."""
        for slot, seq in enumerate(self.slots):
            assert seq is None or seq.slot == slot, f"slot {slot} holds a sequence that believes in {seq.slot}"
        free = [slot for slot, seq in enumerate(self.slots) if seq is None]
        assert sorted(self.free_slots) == free, "free slots differ from the slots without a sequence"
        for running in (self.decoding, self.prefilling, self.parked):
            assert running == sorted(running, key=_rank), "running sequences are out of order"
        assert len(set(self.ends)) == len(self.ends), f"a slot ends twice: {self.ends}"
