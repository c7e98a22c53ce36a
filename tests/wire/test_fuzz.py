"""Whatever bytes come, the codec answers with messages or with msgspec.DecodeError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import wire
from tests.wire.test_golden import TO_CLIENT, TO_ENGINE

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
golden = st.sampled_from([bytes.fromhex(frame) for _, frame in TO_ENGINE + TO_CLIENT])
decoders = pytest.mark.parametrize("decode", [wire.decode_to_client, wire.decode_to_engine])


def survives(decode: Callable[[bytes], Any], frame: bytes) -> None:
    try:
        messages = decode(frame)
    except msgspec.DecodeError:
        return
    assert isinstance(messages, list)


@decoders
@given(frame=st.binary(max_size=200))
def test_any_bytes(decode: Callable[[bytes], Any], frame: bytes) -> None:
    survives(decode, frame)


@decoders
@given(value=plain)
def test_any_msgpack(decode: Callable[[bytes], Any], value: Any) -> None:
    survives(decode, msgspec.msgpack.encode(value))


@decoders
@given(tag=st.sampled_from([*range(1, 9), *range(19, 29)]), fields=st.lists(plain, max_size=10))
def test_any_fields_under_a_known_tag(decode: Callable[[bytes], Any], tag: int, fields: list[Any]) -> None:
    survives(decode, msgspec.msgpack.encode([[tag, *fields]]))


@decoders
def test_endless_nesting(decode: Callable[[bytes], Any]) -> None:
    survives(decode, b"\x91" * 100_000)
    survives(decode, b"\x91\x92\x06" + b"\x91" * 100_000)


@decoders
@given(frame=golden, where=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_broken_frames(decode: Callable[[bytes], Any], frame: bytes, where: int, byte: int, cut: int) -> None:
    changed = bytearray(frame)
    changed[where % len(frame)] = byte
    survives(decode, bytes(changed))
    survives(decode, frame[: cut % len(frame)])
