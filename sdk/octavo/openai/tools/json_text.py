"""One JSON value, checked character by character (RFC 8259)."""

from __future__ import annotations

import re

__all__ = ["JSONText", "NotJSON"]

_SPACE = " \t\n\r"
_WORD = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null")
_WORD_CHARACTERS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CLOSES = {"{": "}", "[": "]"}


class NotJSON(ValueError):
    """The character can't stand here."""


class JSONText:
    """`push` every character until `done`. A stack and a state, no recursion: a model may nest as deeply as it likes.

    Line breaks and tabs that a model writes raw within a string are escaped, which is all that is mended.
    """

    def __init__(self) -> None:
        self.done = False
        self._stack: list[str] = []
        self._state = "value"
        self._word = ""
        self._hex = 0

    def push(self, character: str) -> str | None:
        """What to write for it; None where it no longer belongs to the value, which is done. Raises NotJSON."""
        match self._state:
            case "string":
                return self._in_string(character)
            case "escape":
                if character not in '"\\/bfnrtu':
                    raise NotJSON(character)
                self._state, self._hex = ("hex", 4) if character == "u" else ("string", 0)
                return character
            case "hex":
                if character not in "0123456789abcdefABCDEF":
                    raise NotJSON(character)
                self._hex -= 1
                self._state = "hex" if self._hex else "string"
                return character
            case "word":
                if character in _WORD_CHARACTERS:
                    self._word += character
                    return character
                if _WORD.fullmatch(self._word) is None:
                    raise NotJSON(self._word)
                self._close_value()
                if self.done:
                    return None
        if character not in _SPACE:
            self._structure(character)
        return character

    def _in_string(self, character: str) -> str:
        if character == '"':
            if self._stack and self._stack[-1] == "key":
                self._stack[-1] = "{"
                self._state = "colon"
            else:
                self._close_value()
        elif character == "\\":
            self._state = "escape"
        elif character < " ":
            return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or f"\\u{ord(character):04x}"
        return character

    def _structure(self, character: str) -> None:
        state, top = self._state, self._stack[-1] if self._stack else ""
        if state in ("first key", "key") and character == '"':
            self._stack[-1] = "key"
            self._state = "string"
        elif state == "colon" and character == ":":
            self._state = "value"
        elif state == "comma" and character == ",":
            self._state = "key" if top == "{" else "value"
        elif (state == "comma" and character == _CLOSES[top]) or (
            (state, character) in (("first key", "}"), ("first item", "]"))
        ):
            self._stack.pop()
            self._close_value()
        elif state in ("value", "first item"):
            if character in "{[":
                self._stack.append(character)
                self._state = "first key" if character == "{" else "first item"
            elif character == '"':
                self._state = "string"
            elif character in _WORD_CHARACTERS:
                self._state, self._word = "word", character
            else:
                raise NotJSON(character)
        else:
            raise NotJSON(character)

    def _close_value(self) -> None:
        self._state = "comma"
        self.done = not self._stack
