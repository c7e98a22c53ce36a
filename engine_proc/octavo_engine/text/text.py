"""Text: everything between strings and token ids that one checkpoint defines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from octavo_engine.text.chat import ChatTemplate
from octavo_engine.text.errors import TextError
from octavo_engine.text.formats import FORMATS
from octavo_engine.text.pieces import Stream, StreamFactory

__all__ = ["Backend", "Text"]


class Backend(Protocol):
    """A tokenizer library's tokenizer: fast.py wraps `tokenizers`, slow.py those that only transformers has."""

    vocab_size: int  # added tokens included

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def stream_factory(self, skip_special_tokens: bool) -> StreamFactory: ...

    def token_bytes(self) -> tuple[list[bytes] | None, frozenset[int]]: ...

    def longest_token(self) -> int: ...

    def is_special(self, token_id: int) -> bool: ...


class _NoText(dict[int, str]):
    def __missing__(self, token: int) -> str:
        return ""


class _Silence:
    """The stream of a checkpoint without a tokenizer: token ids in and out, no text."""

    table: Mapping[int, Any] = _NoText()
    open = False

    def feed(self, token_ids: Sequence[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""


_NO_TOKENIZER = "the checkpoint has no tokenizer: give token ids, or name one in EngineOptions.tokenizer"


class Text:
    """backend None: a checkpoint without a tokenizer. eos_token_ids end a generation, and chat_stop, strings, one that
    answers a chat. Thread-safe; encoding releases the GIL with the `tokenizers` backend."""

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        eos_token_ids: Iterable[int] = (),
        bos_token_id: int | None = None,
        chat_template: ChatTemplate | None = None,
        chat_stop: tuple[str, ...] = (),
    ) -> None:
        self._backend = backend
        self._factories: dict[bool, StreamFactory] = {}
        self.eos_token_ids = frozenset(eos_token_ids)
        self.bos_token_id = bos_token_id
        self.chat_template = chat_template
        self.chat_stop = chat_stop

    @property
    def has_tokenizer(self) -> bool:
        return self._backend is not None

    @property
    def has_chat_template(self) -> bool:
        return self._backend is not None and self.chat_template is not None

    @property
    def vocab_size(self) -> int:
        """Token ids that the tokenizer knows, added ones included; 0 without a tokenizer."""
        return self._backend.vocab_size if self._backend is not None else 0

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token there is; 0 without a tokenizer."""
        return self._backend.longest_token() if self._backend is not None else 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the BOS (and what else) the tokenizer adds to a prompt. Special tokens written in the text
        are taken as such, as everywhere in the field. Raises TextError without a tokenizer."""
        if self._backend is None:
            raise TextError(_NO_TOKENIZER)
        return self._backend.encode(text, add_special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The template applied to {"role", "content"} messages, ready for the assistant's answer, to be encoded without
        special tokens: the template writes the BOS where the model wants one. variables: see ChatTemplate. Raises
        TextError."""
        if self._backend is None:
            raise TextError(_NO_TOKENIZER)
        if self.chat_template is None:
            raise TextError(
                "the checkpoint has no chat template, and nothing in it tells a format that is known: name one in "
                f"EngineOptions.chat_template ({', '.join(FORMATS)}; a Jinja file; or a template), or give the prompt "
                "as text"
            )
        return self.chat_template.render(messages, variables)

    def encode_bad_words(self, words: Iterable[str]) -> list[list[int]]:
        """Token sequences to forbid: each word as at the start of a text and, where that is another first token
        and no more of them, as after a space."""
        found: list[list[int]] = []
        for word in words:
            bare = self.encode(word.lstrip(), add_special_tokens=False)
            spaced = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if not bare:
                raise TextError(f"bad_words: {word!r} has no tokens")
            found.append(bare)
            if len(spaced) == len(bare) and spaced[0] != bare[0]:
                found.append(spaced)
        return found

    def token_bytes(self) -> tuple[list[bytes], frozenset[int]]:
        """What each token id adds to a text that has begun, as UTF-8 or a part of it, special tokens by their names;
        and which are special. Raises TextError where there is no tokenizer, or one whose pieces depend on each other.
        """
        if self._backend is None:
            raise TextError(_NO_TOKENIZER)
        pieces, special = self._backend.token_bytes()
        if pieces is None:
            raise TextError(
                "the tokenizer's tokens have no text of their own: what one adds depends on those around it"
            )
        return pieces, special

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence by itself. Unknown ids have none."""
        stream = self.stream(skip_special_tokens)
        return stream.feed(token_ids) + stream.flush()

    def stream_after_text(self, skip_special_tokens: bool = True) -> Stream:
        """An incremental decode that goes on behind something visible."""
        if self._backend is None:
            return _Silence()
        return self._factory(skip_special_tokens)(True)

    def stream(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> Stream:
        """A new sequence's incremental decode; see Detokenizer for what the prompt is for."""
        if self._backend is None:
            return _Silence()
        special = self._backend.is_special
        visible = any(not (skip_special_tokens and special(token)) for token in reversed(prompt_token_ids))
        return self._factory(skip_special_tokens)(visible)

    def _factory(self, skip_special_tokens: bool) -> StreamFactory:
        assert self._backend is not None
        factory = self._factories.get(skip_special_tokens)
        if factory is None:
            factory = self._factories[skip_special_tokens] = self._backend.stream_factory(skip_special_tokens)
        return factory
