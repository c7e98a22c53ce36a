"""Deltas made column by column are those that would be made one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo import wire
from octavo.options import SamplingParams
from octavo_engine.delivery import Live
from octavo_engine.deltas import PlainDeltas
from octavo_engine.scheduling.sequence import Request
from octavo_engine.scheduling.sequence import Sequence as Choice
from octavo_engine.text import Text

A, B = b"client a", b"client b"
OPEN = 100  # a token that shows nothing before the next one


SHORT: Mapping[int, str | None] = {token: None if token == OPEN else f"{token} " for token in range(1000)}
LONG = {token: text and f"_{text}" for token, text in SHORT.items()}


class Words:
    """Tokens are numbers; after OPEN the next one is in brackets."""

    vocab_size = 1000

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return []

    def stream_factory(self, skip_special_tokens: bool) -> Any:
        return lambda visible: _Stream(SHORT if skip_special_tokens else LONG)

    def token_bytes(self) -> tuple[None, frozenset[int]]:
        return None, frozenset()

    def longest_token(self) -> int:
        return 3

    def is_special(self, token_id: int) -> bool:
        return False


class _Stream:
    def __init__(self, table: Mapping[int, str | None]) -> None:
        self.table, self.open = table, False

    def feed(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token in token_ids:
            text += "" if token == OPEN else f"({token}) " if self.open else f"{token} "
            self.open = token == OPEN
        return text

    def flush(self) -> str:
        return "?" if self.open else ""


class Told:
    """Requests, and what each step tells of them."""

    def __init__(self) -> None:
        self.plain, self.live = PlainDeltas(), dict[Any, Live]()

    def start(self, key: int, client: bytes = A, **params: Any) -> Choice:
        sampling = SamplingParams(**params)
        live = Live(client, wire.Generate(key, sampling, token_ids=[1]), 0.0)
        request = Request(key, [1], sampling, frozenset(), 0, 0.0)
        live.admit(request, Text(Words()))
        self.live[key] = live
        return request.sequences[0]

    def step(self, *drew: tuple[Choice | None, int]) -> dict[bytes, list[tuple[int, str, str | None]]]:
        """What each client is told: request, text, finish_reason."""
        sequences, tokens = [seq for seq, _ in drew], [token for _, token in drew]
        for seq, token in drew:
            if seq is not None:
                seq.output.append(token)
        told = {}
        for client, raw in self.plain.tell(sequences, tokens, self.live, 5.0).items():
            (message,) = wire.decode_to_client(wire.encode([raw]))
            assert isinstance(message, wire.Deltas)
            told[client] = list(message.deltas)
        for place, behind in self.plain.others:
            seq = sequences[place]
            assert seq is not None
            live = self.live[seq.request.key]
            made = live.delta(seq, tokens[place], None, behind)
            assert made is not None
            told.setdefault(live.client, []).append(made[0])
        return {client: [(d.request_id, d.text, d.finish_reason) for d in deltas] for client, deltas in told.items()}


def test_each_client_is_told_of_its_own() -> None:
    told = Told()
    one, two, three = told.start(1), told.start(2, B), told.start(3)
    for _ in range(2):
        assert told.step((one, 7), (two, 8), (three, 9)) == {
            A: [(1, "7 ", None), (3, "9 ", None)],
            B: [(2, "8 ", None)],
        }
    assert [live.first_token for live in told.live.values()] == [5.0] * 3
    assert told.step() == {}
    assert told.step((two, 4)) == {B: [(2, "4 ", None)]}


def test_each_choice_has_a_table_of_its_own() -> None:
    told = Told()
    one, two, three = told.start(1), told.start(2, skip_special_tokens=False), told.start(3, B)
    for drew in ([(one, 7), (two, 8), (three, 9)], [(one, 9), (three, 8)], [(two, 7)]):
        texts = {(seq.request.key, f"{'_' if seq is two else ''}{token} ") for seq, token in drew}
        found = told.step(*drew)
        assert {(key, text) for deltas in found.values() for key, text, _ in deltas} == texts


def test_what_is_open_is_fed_until_it_is_whole() -> None:
    told = Told()
    one, two = told.start(1), told.start(2)
    for text, token in (("5 ", 5), ("", OPEN), ("", OPEN), ("(6) ", 6), ("7 ", 7)):
        assert told.step((one, token), (two, 3)) == {A: [(1, text, None), (2, "3 ", None)]}
    told.step((one, OPEN), (two, 3))
    assert told.step((None, 9), (one, 6)) == {A: [(1, "(6) ", None)]}  # another place


def test_who_ends_is_told_of_by_itself() -> None:
    told = Told()
    one, two, three = told.start(1), told.start(2, stop="never"), told.start(3)
    told.step((one, 5), (two, 6), (three, 7))
    three.finish_reason = "length"
    ends = told.step((one, 5), (two, 6), (three, OPEN))
    assert sorted(ends[A]) == [(1, "5 ", None), (2, "6 ", None), (3, "?", "length")]
    assert told.live[3].usage(9.0).completion_tokens == 2
    assert sorted(told.step((one, 5), (two, 6), (None, 7))[A]) == [(1, "5 ", None), (2, "6 ", None)]
    assert told.live[1].usage(9.0).completion_tokens == 3


def test_several_of_one_sequence_keep_their_order() -> None:
    told = Told()
    one, two = told.start(1), told.start(2)
    told.step((one, 5), (two, 6))
    found = told.step((one, OPEN), (one, 8), (None, -1), (two, 6))[A]
    assert [text for request, text, _ in found if request == 1] == ["", "(8) "]
    assert (2, "6 ", None) in found
    assert told.step((one, 5), (two, 6))[A] == [(1, "5 ", None), (2, "6 ", None)]
