"""`octavo chat`: a conversation in the terminal, in rich's clothes or plain, or one answer on standard output."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from octavo.chat.answer import Meter, interruptible
from octavo.chat.commands import Quit, Say, obey
from octavo.chat.conversation import Conversation
from octavo.chat.plain import PlainScreen
from octavo.chat.screen import Screen
from octavo.errors import ClientClosed, EngineError, OctavoError

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.options import SamplingParams

__all__ = ["add_arguments", "answer_once", "chat"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", metavar="TEXT", help="answer this first; else standard input, if piped")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the chat")
    parser.add_argument(
        "--plain", action="store_true", help='no colours or markdown, also where rich is (pip install "octavo[chat]")'
    )


async def answer_once(client: AsyncClient, prompt: str, system: str | None, params: SamplingParams) -> None:
    """Stream the answer to stdout as it is, its figures to stderr."""
    conversation = Conversation(client, params, system or "")
    conversation.say(prompt)
    await _answer(conversation, PlainScreen(raw=True))


async def chat(
    client: AsyncClient, prompt: str | None, system: str | None, params: SamplingParams, plain: bool = False
) -> None:
    """Talk until Ctrl-D or /quit. Ctrl-C stops an answer; a request that fails is told and the chat goes on.

    Raises EngineError where the engine itself is gone.
    """
    conversation = Conversation(client, params, system or "")
    screen = PlainScreen() if plain else _screen()
    screen.tell("Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the commands.")
    if prompt is not None:
        screen.echo(prompt)
    while True:
        line = prompt if prompt is not None else await screen.read()
        prompt = None
        if line is None:
            return
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith("/"):
                outcome = await obey(conversation, line.strip())
                if isinstance(outcome, Quit):
                    return
                if isinstance(outcome, Say):
                    screen.tell(outcome.text)
                    continue
            else:
                conversation.say(line.strip())
            await _answer(conversation, screen)
        except (EngineError, ClientClosed):
            raise
        except OctavoError as error:
            conversation.give_up()
            screen.fail(str(error))


def _screen() -> Screen:
    try:
        from octavo.chat.rich_screen import RichScreen
    except ImportError as error:
        print(f'octavo: plain, without {error.name}: pip install "octavo[chat]"', file=sys.stderr)
        return PlainScreen()
    return RichScreen()


async def _answer(conversation: Conversation, screen: Screen) -> None:
    """One answer onto the screen and into the conversation; what had come before Ctrl-C counts as the answer."""
    meter = Meter()
    pieces: list[str] = []
    screen.begin()
    try:
        async with interruptible():
            async for delta in conversation.stream():
                meter.count(len(delta.token_ids))
                pieces.append(delta.text)
                screen.add(delta.text)
    finally:
        screen.end()
    conversation.answered("".join(pieces), meter.tokens)
    screen.tell(meter.summary())
