"""From what SamplingParams.structured asks for to a compiled grammar, by llguidance.

llguidance was chosen over xgrammar by measurement (tests/bench/grammars.py): a typical schema compiles in a few
milliseconds, what it takes it enforces, and it names what it does not. The cost of a grammar is bounded by what the
library counts, not by a clock: LIMITS are its own, but for the states of a lexer (1 to 2 kB each).
"""

from __future__ import annotations

import json
import subprocess
import sys

from octavo.options import Choice, Grammar, JsonObject, JsonSchema, Regex, Structured
from octavo_engine.structured.matcher import Matcher, error_text
from octavo_engine.text import Text, TextError

__all__ = ["Compiler", "InvalidGrammar", "size_of"]

LIMITS = {"max_lexer_states": 50_000, "verbose_errors": False}
# Between the parts of a JSON value. Without a bound a small model may go on with it for ever.
_WHITESPACE = r"[ ]|\n[ \t]{0,40}"
_JSON_OPTIONS = json.dumps({"lenient": True, "whitespace_pattern": _WHITESPACE})
# llama.cpp's EBNF is rewritten by Python code, at about 5 ms a kB: longer texts go to a process of their own, as that
# holds the interpreter's lock.
_INLINE_EBNF = 2048
_CONVERT = (
    "import os, sys; os.nice(10); from llguidance.gbnf_to_lark import any_to_lark; "
    "sys.stdout.buffer.write(any_to_lark(sys.stdin.buffer.read().decode()).encode())"
)


class InvalidGrammar(Exception):
    """It can't be compiled; the message carries the library's words."""


def size_of(spec: Structured) -> int:
    """Bytes of its text."""
    match spec:
        case JsonSchema(schema=str(text)) | Regex(pattern=text) | Grammar(text=text):
            return len(text.encode())
        case Choice(choices=choices):
            return sum(len(choice.encode()) for choice in choices)
    return 0


class Compiler:
    """Not thread-safe to build, and building holds the interpreter's lock (0.2 s for 49,152 tokens); `compile` may be
    called from any threads and releases it. Raises TextError where the tokenizer can't be used."""

    def __init__(self, text: Text) -> None:
        import llguidance

        if not text.eos_token_ids:
            raise TextError("structured output ends by the end-of-sequence token, and the model has none")
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokenizer(text)), eos_token=sorted(text.eos_token_ids)
        )

    def compile(self, spec: Structured, timeout: float) -> Matcher:
        """A matcher at the grammar's beginning, to be copied for each sequence. timeout: seconds, of rewriting EBNF.

        Raises InvalidGrammar, also where no output can fit.
        """
        library = self._library
        try:
            grammar = self._grammar(spec, timeout)
            limits = library.LLParserLimits(**LIMITS)
            found = library.LLMatcher(self._tokenizer, grammar, limits=limits, log_level=0)
            matcher = Matcher(found)
        except ValueError as error:
            raise InvalidGrammar(f"structured: {error_text(str(error))}") from error
        # The first mask costs the most: its states are shared with every copy.
        bits = None if matcher.error else matcher.bits()
        if matcher.error is not None:
            raise InvalidGrammar(f"structured: {error_text(matcher.error)}")
        if not any(bits or b""):
            raise InvalidGrammar("structured: no output fits")
        if isinstance(spec, JsonSchema) and spec.strict:
            _check_complete(found.get_grammar_warnings())
        return matcher

    def _grammar(self, spec: Structured, timeout: float) -> str:
        library = self._library.LLMatcher
        match spec:
            case JsonSchema(schema=str(schema)):
                return library.grammar_from_json_schema(_with_options(schema))
            case JsonObject():
                return library.grammar_from_json_schema(_with_options('{"type": "object"}'))
            case Regex(pattern=pattern):
                return library.grammar_from_lark(f"start: /{self._library.regex_to_lark(pattern, 'd')}/")
            case Choice(choices=choices):
                return self._library.grammar_from("choice", json.dumps(choices))
            case Grammar(text=text) if "::=" in text and len(text) > _INLINE_EBNF:
                return library.grammar_from_lark(_rewritten(text, timeout))
            case Grammar(text=text):
                return self._library.grammar_from("grammar", text)
        raise ValueError(f"{type(spec).__name__} is no kind of grammar")


class _Tokenizer:
    """The tokenizer as llguidance asks for it."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self.tokens, special = text.token_bytes()
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = min(text.eos_token_ids), None
        self._ids = {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, string: bytes | str) -> list[int]:
        """Tokens of just these bytes: the tokenizer's own where it adds nothing to them, else the longest that fit."""
        raw = string if isinstance(string, bytes) else string.encode()
        ids = self._text.encode(raw.decode("utf-8", "replace"), add_special_tokens=False)
        if all(i < len(self.tokens) for i in ids) and b"".join(self.tokens[i] for i in ids) == raw:
            return ids
        ids, at = [], 0
        while at < len(raw):
            for length in range(min(self._longest, len(raw) - at), 0, -1):
                found = self._ids.get(raw[at : at + length])
                if found is not None:
                    ids.append(found)
                    at += length
                    break
            else:  # a byte that no token has
                return ids
        return ids


def _with_options(schema: str) -> str:
    """The JSON object with the library's options in it. Written into the text: to read it all takes 20 us a kB, and
    here that would be with the interpreter's lock held."""
    head = schema.rstrip().removesuffix("}").rstrip()
    return f'{head}{"" if head.endswith("{") else ","}"x-guidance":{_JSON_OPTIONS}}}'


def _rewritten(text: str, timeout: float) -> str:
    command = [sys.executable, "-c", _CONVERT]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"took more than EngineOptions.grammar_timeout={timeout:g} s to read") from None
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("Error: ")[2])
    return done.stdout.decode()


def _check_complete(warnings: list[str]) -> None:
    """Raises InvalidGrammar for a keyword that is left out. An unknown format is none: it is a note to the reader."""
    left_out = [warning for warning in warnings if not warning.startswith("Unknown format")]
    if left_out:
        raise InvalidGrammar(f"structured: {'; '.join(left_out)}; strict=False leaves out what can't be enforced")
