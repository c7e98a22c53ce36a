"""Chat templates: the Jinja dialect that Hugging Face checkpoints carry, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from octavo_engine.text.calls import Spelling, has_calls, spelling
from octavo_engine.text.errors import TextError

__all__ = ["ChatTemplate"]

_FAILURES = (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError)
_DEFAULTS = {"tools": None, "documents": None, "add_generation_prompt": True}
_MARK = "\u2063continued\u2063"  # set behind the final message's content, to find its end in the prompt


class ChatTemplate:
    """source: the template. tokens: bos_token, eos_token and the like, as template variables. tool_use: the template
    that takes its place where there are tools, as some checkpoints have one.

    Compiled when first used: importing jinja2 and compiling cost 60 ms, which a start without chat can spare.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], tool_use: str | None = None) -> None:
        self.sources = [source] if tool_use is None else [source, tool_use]
        self._tokens = dict(tokens)
        self._spellings: dict[str, Spelling] = {}

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt's text. variables: what else the template reads, tools and documents first of all. With
        continue_final_message, as in transformers, the prompt ends with the final message's content, so that the answer
        goes on from there.

        Raises TextError with the template's own words where it refuses the messages.
        """
        asked = dict(variables or {})
        if asked.pop("continue_final_message", False):
            return self._continued(messages, asked)
        variables = {**_DEFAULTS, **asked}
        source = self.sources[-1 if variables["tools"] else 0]
        if has_calls(messages):
            if source not in self._spellings:
                self._spellings[source] = spelling(partial(self._render, source, variables=_DEFAULTS))
            messages = self._spellings[source](messages)
        return self._render(source, messages, variables)

    def _continued(self, messages: Sequence[Mapping[str, Any]], variables: dict[str, Any]) -> str:
        if variables.setdefault("add_generation_prompt", False):
            raise TextError(
                "continue_final_message goes on with the final message, and add_generation_prompt=True begins a new "
                "one: give add_generation_prompt=False"
            )
        final = messages[-1].get("content") if messages else None
        if not isinstance(final, str):
            raise TextError("continue_final_message needs a final message whose content is a text")
        prompt, mark, _ = self.render(
            [*messages[:-1], {**messages[-1], "content": final + _MARK}], variables
        ).rpartition(_MARK)
        if not mark:
            raise TextError("continue_final_message: the chat template leaves the final message out")
        return prompt

    def _render(self, source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        import jinja2

        try:
            rendered: str = _compile(source).render(
                {**self._tokens, **variables, "messages": [dict(message) for message in messages]}
            )
            rendered.encode()  # JSON may spell halves of surrogate pairs, which no tokenizer takes
        except jinja2.TemplateSyntaxError as error:
            raise TextError(f"the chat template does not compile: {error} (line {error.lineno})") from error
        except jinja2.TemplateError as error:
            raise TextError(f"the chat template refused the messages: {error}") from error
        except _FAILURES as error:
            raise TextError(f"the chat template failed on the messages: {type(error).__name__}: {error}") from error
        return rendered


@lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """The environment that transformers gives templates: same flags, filters, globals and tags."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words for training; here its body is just rendered."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A scope, as in transformers, so that what is set inside stays inside.
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """Refuses underscore names, which reach into the interpreter."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a chat template may not set the attribute {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = Namespace
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own tojson escapes HTML, which a model was not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)
