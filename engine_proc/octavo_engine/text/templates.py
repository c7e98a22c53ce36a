"""The chat template that a checkpoint's chats go through: what EngineOptions.chat_template names, else the checkpoint's
own, else its family's documented one; and what ends an answer in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from octavo_engine.text.chat import ChatTemplate
from octavo_engine.text.documented import Evidence, documented_format
from octavo_engine.text.errors import TextError, WrongOption
from octavo_engine.text.formats import FORMATS, ChatFormat

__all__ = ["Asked", "Chat", "choose_chat", "own_templates", "turn_ends"]

log = logging.getLogger("octavo.engine")

_TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endofturn|>",
    "[|endofturn|]",
    "<eoa>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "▁<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
)


class Asked(NamedTuple):
    """Of a tokenizer, by the options. names: what the checkpoint is called, for documented_format."""

    trust_remote_code: bool = False
    chat_template: str | None = None
    names: tuple[str, ...] = ()


class Chat(NamedTuple):
    """template: None where there is none. tokens: to be found whole in a text. ends: ids of tokens that end an answer.
    stop: strings that do."""

    template: ChatTemplate | None = None
    tokens: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()


def choose_chat(wanted: str | None, own: Mapping[str, str], variables: Mapping[str, str], evidence: Evidence) -> Chat:
    """wanted: EngineOptions.chat_template: a name of `own` or of a documented format, a file, or a template. own: the
    checkpoint's, by name. variables: its special tokens by theirs. Raises TextError."""
    if wanted is not None:
        if wanted not in own and wanted in FORMATS:
            return _documented(wanted, variables, evidence)
        source = own.get(wanted) or _read(wanted, own)
        return Chat(ChatTemplate(source, variables), ends=turn_ends(evidence.id_of, source))
    if own:
        return Chat(ChatTemplate(own.get("default") or next(iter(own.values())), variables, own.get("tool_use")))
    known = documented_format(evidence)
    if known is None:
        return Chat()
    name, told_by = known
    log.info(
        "the checkpoint has no chat template; chats go in the format %r, as %s tells (EngineOptions.chat_template "
        "names another)",
        name,
        told_by,
    )
    return _documented(name, variables, evidence)


def own_templates(entries: object) -> dict[str, str]:
    """By name, from the forms that files have: a template, {name: template} or [{"name", "template"}]."""
    if isinstance(entries, Sequence) and not isinstance(entries, str):
        entries = {
            str(e["name"]): e["template"] for e in entries if isinstance(e, Mapping) and {"name", "template"} <= set(e)
        }
    if not isinstance(entries, Mapping):
        entries = {"default": entries}
    return {str(name): source for name, source in entries.items() if isinstance(source, str) and source}


def turn_ends(id_of: Callable[[str], int | None], source: str | None = None) -> frozenset[int]:
    """Ids of tokens that by their names end a turn or a document. source: of those alone that this template writes."""
    ids = (id_of(token) for token in _TURN_ENDS if source is None or token in source)
    return frozenset(i for i in ids if i is not None)


def _documented(name: str, variables: Mapping[str, str], evidence: Evidence) -> Chat:
    form: ChatFormat = FORMATS[name]
    own = dict(variables)
    for variable, number in form.ids.items():
        number = evidence.generation.get(f"{variable}_id", number)
        token = evidence.token_of(number) if isinstance(number, int) else None
        if token is None:
            raise TextError(f"the chat format {name!r} writes token {number}, and the vocabulary has none")
        own[variable] = token
    tokens = [*form.tokens, *(own[variable] for variable in form.ids)]
    ends = (evidence.id_of(token) for token in form.ends)
    return Chat(
        ChatTemplate(form.template, own),
        tuple(token for token in tokens if evidence.id_of(token) is not None),
        frozenset(end for end in ends if end is not None),
        form.stop,
    )


def _read(wanted: str, own: Mapping[str, str]) -> str:
    if "{{" in wanted or "{%" in wanted:
        return wanted
    path = Path(wanted).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        names = f"; the checkpoint's own are {', '.join(own)}" if own else ""
        raise WrongOption(
            f"chat_template={wanted[:200]!r}: no template, no file that can be read ({error}) and no known format; "
            f"these are {', '.join(FORMATS)}{names}"
        ) from error
