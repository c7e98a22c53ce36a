"""What text a token stands for, and how the text of a sequence grows token by token.

A stream's `feed` results concatenated, then `flush`, are the tokenizer's decode of all its tokens. Three families of
decoders (as `tokenizers` composes them) have tables that make a token a dictionary lookup; any other is decoded
again over a short window:

- byte-level BPE: a token is bytes, the text their UTF-8 with U+FFFD for each maximal invalid part;
- SentencePiece with byte fallback: a token is text or one byte; a run of byte tokens is either valid UTF-8 or one
  U+FFFD a byte, so it is held until it ends (see ByteFallbackStream);
- the rest that looks at one token at a time (WordPiece, Metaspace, none), which treats the first token differently.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["BYTE_CHARS", "Stream", "StreamFactory", "stream_factory", "token_bytes", "window_factory"]

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_INCREMENTAL = codecs.getincrementaldecoder("utf-8")


class Stream(Protocol):
    """The growing text of one sequence.

    table: where the text of the next token is found by its id, a str, unless the stream is `open`: then, and where
    something else is found, only `feed` knows. A token whose text was taken from the table is not fed.
    """

    open: bool

    @property
    def table(self) -> Mapping[int, Any]: ...

    def feed(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


# visible_before: whether the text goes on after something visible (the prompt), or starts here.
StreamFactory = Callable[[bool], Stream]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_of_char()
BYTE_CHARS = {byte: char for char, byte in _BYTES.items()}


def _is_id(token: int) -> bool:
    """Whether the library takes it for one; it may still have no token."""
    return 0 <= token < 1 << 32


class _Vocabulary:
    """Token strings as a decoder sees them: None for ids that decode to nothing."""

    def __init__(self, tokenizer: Any, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder() if skip_special else {}
        self._skipped = {token for token, entry in added.items() if entry.special}

    def __call__(self, token: int) -> str | None:
        if token in self._skipped or not _is_id(token):
            return None
        string: str | None = self._tokenizer.id_to_token(token)
        return string


class _ByteLevelTable(dict[int, "str | bytes"]):
    """Token id -> its text where its bytes are whole UTF-8 characters, else its bytes. Filled when asked."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary

    def __missing__(self, token: int) -> str | bytes:
        string = self._vocabulary(token) or ""
        try:
            raw = bytes([_BYTES[char] for char in string])
        except KeyError:  # an added token outside the byte alphabet stands for itself
            raw = string.encode()
        piece: str | bytes
        try:
            piece = raw.decode()
        except UnicodeDecodeError:
            piece = raw  # a part of a character
        self[token] = piece
        return piece


class ByteLevelStream:
    __slots__ = ("_decoder", "open", "table")

    def __init__(self, table: _ByteLevelTable) -> None:
        self.table = table
        self._decoder: codecs.IncrementalDecoder | None = None
        self.open = False  # the decoder holds a character's first bytes

    def feed(self, token_ids: Sequence[int]) -> str:
        table = self.table
        text = ""
        for token in token_ids:
            piece = table[token]
            if self.open or piece.__class__ is bytes:
                piece = self._decode(piece)
            text += piece  # type: ignore[operator]
        return text

    def _decode(self, piece: str | bytes) -> str:
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = _INCREMENTAL("replace")
        text = decoder.decode(piece.encode() if isinstance(piece, str) else piece)
        self.open = bool(decoder.getstate()[0])
        return text

    def flush(self) -> str:
        if not self.open or self._decoder is None:
            return ""
        self.open = False
        return self._decoder.decode(b"", True)


class _FallbackTable(dict[int, "str | int"]):
    """Token id -> its text, or its byte for <0x00> .. <0xFF>."""

    def __init__(self, vocabulary: _Vocabulary, decoder: Any) -> None:
        self._vocabulary, self._decoder = vocabulary, decoder

    def __missing__(self, token: int) -> str | int:
        string = self._vocabulary(token)
        piece: str | int = ""
        if string:
            byte = _BYTE_TOKEN.fullmatch(string)
            # after another token, as the leading space is stripped from the first alone
            piece = int(byte[1], 16) if byte else self._decoder.decode(["a", string])[1:]
        self[token] = piece
        return piece


class ByteFallbackStream:
    """A run of byte tokens is held until it ends or is known to be invalid, as its validity decides what all of it
    becomes. So that a script written in byte tokens alone still streams, a run of more than `HOLD` valid bytes goes
    out as characters complete; if it turns invalid after that, U+FFFD stands only for what had not gone out.
    """

    HOLD = 32
    __slots__ = ("_broken", "_chars", "_decoder", "_lead", "_length", "_space", "_unsent", "open", "table")

    def __init__(self, table: _FallbackTable, lead: int, space: str) -> None:
        self.table = table
        self.open = lead > 0
        self._lead, self._space = lead, space  # how many leading `space` characters the text still loses
        self._decoder = _INCREMENTAL("strict")
        self._length = 0  # bytes of the current run, and of them those not sent, and their whole characters
        self._unsent = 0
        self._chars = ""
        self._broken = False

    def feed(self, token_ids: Sequence[int]) -> str:
        table = self.table
        text = ""
        for token in token_ids:
            piece = table[token]
            if piece.__class__ is int:
                text += self._byte(piece)
            elif piece:
                if self._length:
                    text += self._end_run()
                text += piece  # type: ignore[operator]
        if self._lead and text:
            text = self._strip(text)
        self.open = self._length > 0 or self._lead > 0
        return text

    def flush(self) -> str:
        text = self._end_run()
        return self._strip(text) if self._lead and text else text

    def _byte(self, byte: int) -> str:
        self._length += 1
        if self._broken:
            return REPLACEMENT
        self._unsent += 1
        try:
            self._chars += self._decoder.decode(bytes((byte,)))
        except UnicodeDecodeError:
            self._broken = True
            return self._send(REPLACEMENT * self._unsent, 0)
        if self._length <= self.HOLD or not self._chars:
            return ""
        return self._send(self._chars, len(self._decoder.getstate()[0]))

    def _send(self, text: str, unsent: int) -> str:
        self._chars, self._unsent = "", unsent
        return text

    def _end_run(self) -> str:
        whole = not self._decoder.getstate()[0]
        text = self._chars if whole else REPLACEMENT * self._unsent
        if self._broken:
            text = ""
        self._decoder.reset()
        self._length, self._broken = 0, False
        return self._send(text, 0)

    def _strip(self, text: str) -> str:
        cut = 0
        while cut < min(self._lead, len(text)) and text[cut] == self._space:
            cut += 1
        self._lead = self._lead - cut if cut == len(text) else 0
        return text[cut:]


class _LocalTable(dict[int, "str | None"]):
    """Token id -> its text, which depends on the token alone: at the text's start, or after something."""

    def __init__(self, vocabulary: _Vocabulary, decode: Callable[[list[str]], str], before: list[str]) -> None:
        self._vocabulary, self._decode, self._before = vocabulary, decode, before
        self._cut = len(decode(before))

    def __missing__(self, token: int) -> str | None:
        string = self._vocabulary(token)
        piece = None if string is None else self._decode([*self._before, string])[self._cut :]
        self[token] = piece
        return piece


class LocalStream:
    __slots__ = ("_first", "open", "table")

    def __init__(self, first: _LocalTable, rest: _LocalTable, start: bool) -> None:
        self._first, self.table = first, rest
        self.open = start

    def feed(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token in token_ids:
            piece = (self._first if self.open else self.table)[token]
            if piece is not None:
                self.open = False
                text += piece
        return text

    def flush(self) -> str:
        return ""


class _Unknown(dict[int, None]):
    """No token has a text of its own."""

    def __missing__(self, token: int) -> None:
        return None


class WindowStream:
    """Decodes the tokens of the last two deltas again and again: for decoders without a table (50 us a token).

    Tokens that show nothing, or end in what is no character, are held in case that more make one of them. Of a long run
    of those all but the last four go out, as no character has more bytes.
    """

    HOLD = 16
    __slots__ = ("_decode", "_shown", "_window")
    table: Mapping[int, Any] = _Unknown()
    open = False

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0  # how many of the window's tokens have gone out

    def feed(self, token_ids: Sequence[int]) -> str:
        self._window.extend(token_ids)
        return self._grow(final=False)

    def flush(self) -> str:
        return self._grow(final=True)

    def _grow(self, final: bool) -> str:
        window, size = self._window, len(self._window)
        before, text = self._decode(window[: self._shown]), self._decode(window)
        if not final and (len(text) <= len(before) or text.endswith(REPLACEMENT)):
            size -= 4
            if size - self._shown < self.HOLD:
                return ""
            whole, text = text, self._decode(window[:size])
            if not whole.startswith(text):  # cut within a character: with the next token it isn't
                return ""
        self._window = window[self._shown :]
        self._shown = size - self._shown
        return text[len(before) :]


def stream_factory(tokenizer: Any, skip_special: bool) -> StreamFactory:
    """How sequences of this `tokenizers.Tokenizer` become text; build once, it owns the tables."""
    parts = _decoder_parts(tokenizer.decoder)
    vocabulary = _Vocabulary(tokenizer, skip_special)
    match _kind(parts):
        case "bytes":
            bytes_of = _ByteLevelTable(vocabulary)
            return lambda visible_before: ByteLevelStream(bytes_of)
        case "fallback":
            pieces = _FallbackTable(vocabulary, tokenizer.decoder)
            lead, space = parts[-1].get("start", 0), parts[-1].get("content", " ")
            return lambda visible_before: ByteFallbackStream(pieces, 0 if visible_before else lead, space)
        case "local":
            decode = tokenizer.decoder.decode if parts else " ".join
            first, rest = _LocalTable(vocabulary, decode, []), _LocalTable(vocabulary, decode, ["a"])
            return lambda visible_before: LocalStream(first, rest, not visible_before)
    return window_factory(lambda ids: tokenizer.decode(list(filter(_is_id, ids)), skip_special_tokens=skip_special))


def token_bytes(tokenizer: Any) -> list[bytes] | None:
    """What each token of this `tokenizers.Tokenizer` adds to a text that has begun, special ones by their names; empty
    for an id without a token. None where that depends on the tokens around it."""
    parts, vocabulary = _decoder_parts(tokenizer.decoder), _Vocabulary(tokenizer, False)
    table: Mapping[int, str | bytes | int | None]
    match _kind(parts):
        case "bytes":
            table = _ByteLevelTable(vocabulary)
        case "fallback":
            table = _FallbackTable(vocabulary, tokenizer.decoder)
        case "local":
            table = _LocalTable(vocabulary, tokenizer.decoder.decode if parts else " ".join, ["a"])
        case _:
            return None
    return [_as_bytes(table[token]) for token in range(tokenizer.get_vocab_size(with_added_tokens=True))]


def _as_bytes(piece: str | bytes | int | None) -> bytes:
    if isinstance(piece, int):
        return bytes((piece,))
    return piece.encode() if isinstance(piece, str) else piece or b""


def _kind(parts: list[dict[str, Any]]) -> str:
    """Which table holds the pieces of a decoder of these parts: bytes, fallback, local or none."""
    kinds = " ".join(part["type"] for part in parts)
    if re.fullmatch(r"(Fuse )?ByteLevel( Fuse)?", kinds):
        return "bytes"
    if re.fullmatch(r"(Replace )*ByteFallback( Fuse( Strip)?)?", kinds) and not parts[-1].get("stop"):
        return "fallback"
    return "local" if re.fullmatch(r"((Replace|Metaspace|WordPiece) ?)*(Fuse)?", kinds) else "none"


def window_factory(decode: Callable[[list[int]], str]) -> StreamFactory:
    """The same, given only a decode of whole sequences."""
    return lambda visible_before: WindowStream(decode)


def _decoder_parts(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]
