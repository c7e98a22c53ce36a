"""tools and tool_choice as requests hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.openai.wrong import WrongField

__all__ = ["Function", "Tool", "Toolbox", "toolbox"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str
    function: Function | None = None


class Toolbox(msgspec.Struct):
    """What the model may call. forced: it has to call one of them. only_one: once."""

    functions: list[Function]
    forced: bool = False
    only_one: bool = False

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """Name -> the parameters' JSON schema."""
        return {function.name: function.parameters or {} for function in self.functions}

    def told(self) -> list[dict[str, Any]]:
        """As chat templates read them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": function.name,
                    "description": function.description or "",
                    "parameters": function.parameters or {"type": "object", "properties": {}},
                },
            }
            for function in self.functions
        ]


def toolbox(functions: Sequence[Function], choice: str | Mapping[str, Any] | None, parallel: bool | None) -> Toolbox:
    """functions: of the field `tools`; choice: `tool_choice`; parallel: `parallel_tool_calls`. Raises WrongField."""
    names: set[str] = set()
    for i, function in enumerate(functions):
        if _NAME.fullmatch(function.name) is None:
            what = "1 to 64 letters, digits, underscores, dots and dashes"
            raise WrongField(f"tools[{i}].function.name", f"tools[{i}]: {function.name!r:.80} is no name: {what}")
        if function.name in names:
            raise WrongField(f"tools[{i}].function.name", f"tools[{i}]: there are two tools named {function.name!r}")
        names.add(function.name)
    kept = list(functions)
    mode: Any = choice
    alone = isinstance(choice, Mapping) and choice.get("type") == "function"
    if isinstance(choice, Mapping):
        mode, chosen = _chosen(choice)
        unknown = next((name for name in chosen if name not in names), None)
        if unknown is not None:
            raise WrongField("tool_choice", f"tool_choice: no tool is named {unknown!r:.80}")
        kept = [function for function in functions if function.name in chosen]
    if mode not in (None, "none", "auto", "required"):
        allowed = "'none', 'auto', 'required' or a function's name as an object"
        raise WrongField("tool_choice", f"tool_choice={mode!r:.80}: {allowed}")
    if mode == "required" and not kept:
        raise WrongField("tool_choice", "tool_choice is only allowed when tools are given")
    return Toolbox([] if mode == "none" else kept, mode == "required", alone or parallel is False)


def _chosen(choice: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The mode, and the names of the tools that are left."""
    kind = choice.get("type")
    given: Any = None
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        given = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if isinstance(given, list):
            return allowed.get("mode", "auto"), [_name(tool) for tool in given]
    elif kind == "function":
        return "required", [_name(choice)]
    raise WrongField(
        "tool_choice", f"tool_choice of type {kind!r:.80} is not served; allowed: 'function', 'allowed_tools'"
    )


def _name(tool: Any) -> str:
    """{"type": "function", "function": {"name": ...}}, or, as /v1/responses has it, without the inner object."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise WrongField("tool_choice", "tool_choice: a tool is named by its function's name")
    return name
