"""The waiting queue: by priority, then arrival, with a bound on how often a request is overtaken."""

from __future__ import annotations

from bisect import bisect_left, insort

from octavo_engine.scheduling.sequence import Sequence

__all__ = ["WaitingQueue"]


def _by_rank(seq: Sequence) -> tuple[int, int, int]:
    return seq.rank


def _by_arrival(seq: Sequence) -> tuple[int, int]:
    return seq.rank[1:]


class WaitingQueue:
    """Sequences that hold neither slot nor pages.

    The head is the smallest rank (priority, arrival, choice), unless a sequence has been overtaken `max_overtaken`
    times by later arrivals: then the earliest of those, so that no later arrival passes it again.
    Lists are kept sorted: at queue lengths that admission allows, moving a list's tail costs less than a step.
    """

    def __init__(self, max_overtaken: int) -> None:
        self._max_overtaken = max_overtaken
        self._ranked: list[Sequence] = []
        self._arrived: list[Sequence] = []
        self._overdue: list[Sequence] = []
        self.num_tokens = 0  # prompt and output of all that wait

    def __len__(self) -> int:
        return len(self._ranked)

    def __contains__(self, seq: object) -> bool:
        return seq in self._ranked

    def push(self, seq: Sequence) -> None:
        insort(self._ranked, seq, key=_by_rank)
        insort(self._arrived, seq, key=_by_arrival)
        if seq.overtaken >= self._max_overtaken:
            insort(self._overdue, seq, key=_by_arrival)
        self.num_tokens += seq.num_tokens

    def push_choices(self, choices: list[Sequence]) -> None:
        """The first waits to compute the prompt, the others to start from it."""
        if choices:
            leader, *followers = choices
            leader.leader, leader.followers = None, followers
            for follower in followers:
                follower.leader = leader
            self.push(leader)

    def head(self) -> Sequence:
        """Who is next. The queue is not empty."""
        return self._overdue[0] if self._overdue else self._ranked[0]

    def admit(self, seq: Sequence) -> None:
        """Take `seq` out to run: earlier arrivals that still wait were overtaken once more."""
        self.remove(seq)
        order = seq.rank[1]
        for other in self._arrived:
            if other.rank[1] >= order:
                break
            other.overtaken += 1
            if other.overtaken == self._max_overtaken:
                insort(self._overdue, other, key=_by_arrival)

    def remove(self, seq: Sequence) -> None:
        """Take `seq` out for good. It is in the queue."""
        del self._ranked[bisect_left(self._ranked, seq.rank, key=_by_rank)]
        del self._arrived[bisect_left(self._arrived, seq.rank[1:], key=_by_arrival)]
        if seq.overtaken >= self._max_overtaken:
            self._overdue.remove(seq)
        self.num_tokens -= seq.num_tokens

    def check(self) -> None:
        """Raises AssertionError."""
        assert self._ranked == sorted(self._ranked, key=_by_rank)
        assert self._arrived == sorted(self._ranked, key=_by_arrival)
        assert self._overdue == [s for s in self._arrived if s.overtaken >= self._max_overtaken]
        assert self.num_tokens == sum(s.num_tokens for s in self._ranked)
        for seq in self._ranked:
            assert seq.slot < 0, "a waiting sequence has a slot"
            assert not seq.pages, "a waiting sequence holds pages"
            assert seq.finish_reason is None, "a finished sequence waits"
