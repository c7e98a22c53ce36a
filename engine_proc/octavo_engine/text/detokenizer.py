"""From the tokens of one choice to the text that its stream sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from octavo_engine.text.stop import StopMatcher

if TYPE_CHECKING:
    from octavo.options import SamplingParams
    from octavo_engine.text.text import Text

__all__ = ["Detokenizer", "Piece"]


class Piece(msgspec.Struct, gc=False):
    """Text that can go out now, and the stop string that ended the text, if one did."""

    text: str
    stop: str | None = None


class Detokenizer:
    """The text of one choice, as its tokens come. The texts of all pieces concatenated are the decode of all tokens,
    cut at the first stop string. Characters whose last bytes have not come, and text that may still become a stop
    string, are held back and never leak; `final` releases them (missing bytes as U+FFFD).

    stop: strings that end the text besides params.stop.
    params.min_tokens: stop strings that end within the first min_tokens tokens don't count.
    prompt_token_ids: a SentencePiece decoder drops a leading space only at the start of the text; where something
    visible stands before the output, that is not here, so `prompt + output` reads as it was generated. Without it the
    output is decoded by itself.
    A token that ends the request (end of sequence, stop token) is the caller's to leave out.
    stream: where no string ends the text, what may be given tokens that are not the last ones in place of `push`.
    """

    __slots__ = ("_flush", "_left", "_matcher", "_read", "_stopped", "stream")

    def __init__(
        self, text: Text, params: SamplingParams, prompt_token_ids: Sequence[int] = (), stop: tuple[str, ...] = ()
    ) -> None:
        stream = text.stream(params.skip_special_tokens, prompt_token_ids)
        self._read, self._flush = stream.feed, stream.flush
        stops = (*((params.stop,) if isinstance(params.stop, str) else params.stop), *stop)
        self._matcher = StopMatcher(stops, params.include_stop_str_in_output) if stops else None
        self.stream = None if stops else stream
        self._left = params.min_tokens  # tokens to come before stop strings count
        self._stopped = False

    def push(self, token_ids: Sequence[int], final: bool = False) -> Piece:
        """The next tokens of the choice, one typically; `final` with the last ones, or with none. After a stop string
        or `final` nothing more comes out."""
        if self._matcher is not None:
            return self._push_matching(token_ids, final)
        text = self._read(token_ids)
        if final:
            text += self._flush()
        return Piece(text)

    def _push_matching(self, token_ids: Sequence[int], final: bool) -> Piece:
        if self._stopped:
            return Piece("")
        sent = ""
        if self._left:
            early, token_ids = token_ids[: self._left], token_ids[self._left :]
            self._left -= len(early)
            sent, stop = self._matcher.feed(self._read(early), match=False)  # type: ignore[union-attr]
        text = self._read(token_ids)
        if final:
            text += self._flush()
        out, stop = self._matcher.feed(text)  # type: ignore[union-attr]
        sent += out
        if stop is not None:
            self._stopped = True
        elif final:
            sent += self._matcher.flush()  # type: ignore[union-attr]
        return Piece(sent, stop)
