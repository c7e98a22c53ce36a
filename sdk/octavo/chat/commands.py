"""The /commands of a chat. Each gets the conversation and what was written behind its name."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from octavo.chat.conversation import Conversation
from octavo.errors import InvalidOption

__all__ = ["COMMANDS", "Answer", "Outcome", "Quit", "Say", "obey"]


@dataclass(frozen=True)
class Say:
    """Tell the user this."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The model is to answer the last turn."""


@dataclass(frozen=True)
class Quit:
    """The chat is over."""


Outcome = Say | Answer | Quit


async def _help(chat: Conversation, text: str) -> Outcome:
    lines = [f"{usage:16} {what}" for usage, what, _ in COMMANDS.values()]
    lines.append('Several lines: begin with """ and end with """, or end a line with a backslash.')
    return Say("\n".join(lines))


async def _system(chat: Conversation, text: str) -> Outcome:
    if text:
        chat.system = "" if text == "none" else text
    return Say(f"system: {chat.system or 'none'}")


async def _reset(chat: Conversation, text: str) -> Outcome:
    chat.reset()
    return Say("forgotten; a new chat begins")


async def _undo(chat: Conversation, text: str) -> Outcome:
    return Say(f"taken back: {chat.undo()}")


async def _retry(chat: Conversation, text: str) -> Outcome:
    chat.say(chat.undo())
    return Answer()


async def _save(chat: Conversation, text: str) -> Outcome:
    if not text:
        raise InvalidOption("/save", text, "the name of a file")
    return Say(f"saved to {chat.save(text)}")


async def _load(chat: Conversation, text: str) -> Outcome:
    if not text:
        raise InvalidOption("/load", text, "the name of a file")
    return Say(f"{chat.load(text)} turns loaded")


async def _set(chat: Conversation, text: str) -> Outcome:
    name, _, value = text.partition(" ")
    if name:
        return Say(chat.set(name.replace("-", "_"), value.strip()))
    given = msgspec.structs.asdict(chat.params)
    return Say("\n".join(f"{name} = {value}" for name, value in given.items() if name != "n"))


async def _temperature(chat: Conversation, text: str) -> Outcome:
    return Say(chat.set("temperature", text) if text else f"temperature = {chat.params.temperature}")


async def _longest(chat: Conversation, text: str) -> Outcome:
    return Say(chat.set("max_tokens", text) if text else f"max_tokens = {chat.params.max_tokens}")


async def _stats(chat: Conversation, text: str) -> Outcome:
    figures = await chat.client.stats()
    lines = [f"this chat: {len(chat.turns)} turns; {chat.answers} answers of {chat.tokens} tokens"]
    if chat.turns and chat.client.ready.has_chat_template:
        used, most = len(await chat.client.tokenize(chat.messages())), chat.client.options.max_model_len
        lines.append(f"context: {used} of {most} tokens" if most else f"context: {used} tokens")
    wanted = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "generation_tokens")
    lines += [f"{name}: {figures[name]:g}" for name in wanted if name in figures]
    if figures.get("prefix_cache_queries"):
        share = figures["prefix_cache_hits"] / figures["prefix_cache_queries"]
        lines.append(f"prompt tokens found in the prefix cache: {share:.0%}")
    return Say("\n".join(lines))


async def _model(chat: Conversation, text: str) -> Outcome:
    ready, options = chat.client.ready, chat.client.options
    weights = options.quantization or "as stored"
    lines = [
        f"{options.model} ({ready.architecture}, {options.dtype} on {options.device})",
        f"vocabulary {ready.vocab_size:,}, context {options.max_model_len}, weights {weights}",
        f"engine {ready.version}, process {ready.pid}",
    ]
    return Say("\n".join(lines))


async def _quit(chat: Conversation, text: str) -> Outcome:
    return Quit()


COMMANDS: dict[str, tuple[str, str, Callable[[Conversation, str], Awaitable[Outcome]]]] = {
    "/help": ("/help", "this list", _help),
    "/system": ("/system [TEXT]", "the system message, or a new one; none takes it away", _system),
    "/reset": ("/reset", "forget what was said", _reset),
    "/undo": ("/undo", "take the last exchange back", _undo),
    "/retry": ("/retry", "another answer to what was said last", _retry),
    "/save": ("/save FILE", "keep the chat as JSON", _save),
    "/load": ("/load FILE", "go on with a chat that was kept", _load),
    "/temp": ("/temp [X]", "the temperature; 0 is greedy", _temperature),
    "/max": ("/max [N]", "the longest answer, in tokens", _longest),
    "/set": ("/set [NAME X]", "any other field of octavo.SamplingParams", _set),
    "/stats": ("/stats", "tokens so far, context used, the engine's figures", _stats),
    "/model": ("/model", "what runs", _model),
    "/quit": ("/quit", "end the chat, as Ctrl-D does", _quit),
}


async def obey(chat: Conversation, line: str) -> Outcome:
    """Raises InvalidOption for a command that isn't one, or an argument that can't be."""
    name, _, text = line.partition(" ")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise InvalidOption("command", name, f"{near[0]}, perhaps; /help lists all" if near else "one that /help lists")
    return await COMMANDS[name][2](chat, text.strip())
