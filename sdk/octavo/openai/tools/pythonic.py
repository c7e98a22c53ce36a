"""Calls written in Python: [f(a=1), g(b="x")] (Llama 3.2 and 4, ToolACE), or one a line in a fence (Gemma)."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.openai.tools.reader import END, Mismatch, Reader, Reading

__all__ = ["PythonicCalls"]

_PAIRS = {")": "(", "]": "[", "}": "{"}
_WORDS = {"true": True, "false": False, "null": None}


class PythonicCalls(Reader):
    """A list of calls at the beginning of a line, or behind an opener calls in a list, in one line or one a line.

    tools: name -> the names of its parameters in order. Only those are called. A call has begun when its first argument
    has come; each argument is said as a whole.
    """

    def __init__(
        self,
        openers: Sequence[str] = (),
        closers: Sequence[str] = (),
        *,
        tools: Mapping[str, Sequence[str]],
        bare: bool = True,
    ) -> None:
        super().__init__(openers, closers, starters="[" if bare else "")
        self._tools = tools

    def section(self, opener: str) -> Reading[None]:
        if opener not in self._starters:
            opener = yield from self.solid()
        listed = opener == "["
        first = (yield from self.solid()) if listed else opener
        while True:
            yield from self._call(first)
            character = yield from self.solid()
            if listed and character == "]":
                self._held = ""
                return
            if listed and character == ",":
                first = yield from self.solid()
            elif not listed and (character.isalpha() or character == "_"):
                first = character
            elif listed:
                raise Mismatch
            else:
                self.back(character)
                return

    def _call(self, first: str) -> Reading[None]:
        name = ""
        while first not in ("(", END):
            name += first
            if not any(tool.startswith(name) for tool in self._tools):
                raise Mismatch
            first = yield from self.character()
        if name not in self._tools:
            raise Mismatch

        def argument(count: int) -> Reading[tuple[str, bool]]:
            text, end = yield from self._argument()
            said = _member(text, count, self._tools[name]) if text.strip() or end == "," else ""
            return said, end == ")"

        yield from self.members(name, argument)

    def _argument(self) -> Reading[tuple[str, str]]:
        """To the comma or bracket that ends it, and that."""
        text, quote, escaped = "", "", False
        stack: list[str] = []
        while True:
            character = yield from self.character()
            if character == END:
                raise Mismatch
            if quote:
                if escaped:
                    escaped = False
                elif character == "\\":
                    escaped = True
                elif character == quote:
                    quote = ""
            elif character in "\"'":
                quote = character
            elif not stack and character in ",)":
                return text, character
            elif character in "([{":
                stack.append(character)
            elif character in _PAIRS and (not stack or stack.pop() != _PAIRS[character]):
                raise Mismatch
            text += character


def _member(text: str, position: int, parameters: Sequence[str]) -> str:
    """One argument as a member of a JSON object. Raises Mismatch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            call = ast.parse(f"f({text.strip()})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.keywords:
            name, value = call.keywords[0].arg, call.keywords[0].value
        else:
            name, value = parameters[position], call.args[0]
        if name is None:
            raise Mismatch
        said = f"{json.dumps(name)}: {json.dumps(_literal(value), ensure_ascii=False, allow_nan=False)}"
        return said.encode().decode()
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        raise Mismatch from None


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value) if value is None or isinstance(value, (str, int, float)):
            return value
        case ast.Name(name) if name in _WORDS:
            return _WORDS[name]
        case ast.UnaryOp(ast.USub(), ast.Constant(value)) if isinstance(value, (int, float)):
            return -value
        case ast.List(items) | ast.Tuple(items):
            return [_literal(item) for item in items]
        case ast.Dict(keys, values) if all(isinstance(key, ast.Constant) for key in keys):
            return {
                str(key.value): _literal(value)
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant)
            }
    raise ValueError(ast.dump(node))
