"""An engine for your tests: scripted, in memory, no model, no process, no torch.

    engine = ScriptedEngine({"Hello": "Hi there!", "slow": Reply("a b c", delay=0.1), "bad": Reply(fail="overloaded")})
    async with engine.client() as client:
        assert (await client.generate("Hello")).text == "Hi there!"
    assert engine.requests[0].text == "Hello"

It plugs in below the real AsyncClient, at its Transport, and speaks the wire: what you test is what you ship.
Delays run on the event loop's clock, so trio's MockClock skips them.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo import wire
from octavo.client import AsyncClient
from octavo.loop import Loop
from octavo.options import EngineOptions

__all__ = ["Reply", "ScriptedEngine"]


@dataclass(frozen=True)
class Reply:
    """What the engine answers to one prompt.

    text: a string, streamed word by word, or the deltas themselves; each delta counts as one token. delay: seconds
    before each delta. finish_reason: of all choices ("length" is set by itself at max_tokens).
    fail: end in this code of wire.Failed (overloaded, invalid_request, prompt_too_long, timeout, failed) after the
    text, saying message. die: the whole engine dies after the text. hang: nothing comes after the text.
    prompt_logprobs: of each prompt token but the first, given where the request asks for them (for `score`, of the
    tokens that are scored). embedding: what `embed` gives.
    """

    text: str | Sequence[str] = ""
    delay: float = 0.0
    finish_reason: str = "stop"
    fail: str | None = None
    message: str = "scripted"
    die: bool = False
    hang: bool = False
    prompt_logprobs: Sequence[float] | None = None
    embedding: Sequence[float] = (1.0, 0.0)

    def pieces(self) -> list[str]:
        return re.findall(r"\s*\S+\s*$|\s*\S+", self.text) if isinstance(self.text, str) else list(self.text)


Script = Mapping[str, "Reply | str"] | Callable[[wire.Generate], "Reply | str"]


class ScriptedEngine:
    """Answers prompts from a script: a mapping from prompt text (of a chat: the last message) to the answer, or a
    function of the request. What the mapping lacks gets `default`; None refuses it as an invalid request.

    A text's tokens are numbers, one a word, from 0. options, chat_template: what Ready
    says.
    requests: every request that came, in order. aborted: the ids of those whose reader left or aborted them.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        default: Reply | str | None = None,
        options: EngineOptions | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._options = options or EngineOptions(model="scripted")
        self._chat_template = chat_template
        self._script = script if script is not None else {}
        self._default = default
        self.requests: list[wire.Generate] = []
        self.aborted: list[int] = []
        self._loras: dict[str, wire.LoraInfo] = {}
        self._running: dict[int, tuple[wire.Generate, Reply, int]] = {}
        self._outbox: deque[bytes] = deque()
        self._loop: Loop | None = None
        self._silent = False
        self._on_readable: Callable[[], None] = lambda: None
        self._on_lost: Callable[[str], None] = lambda why: None

    def client(self) -> AsyncClient:
        """The client of this engine, to be entered with `async with` or opened."""
        return AsyncClient.over(self)

    def die(self, why: str = "the scripted engine died") -> None:
        """From now on everything raises EngineDead, what runs included."""
        self._running.clear()
        self._on_lost(why)

    def stop_answering(self) -> None:
        """From now on nothing is answered, health checks included, as if the process were stopped."""
        self._silent = True

    # ---- Transport -------------------------------------------------------------------------------------------------

    def start(self, loop: Loop, on_readable: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        self._loop, self._on_readable, self._on_lost = loop, on_readable, on_lost

    def send(self, frame: bytes) -> None:
        for message in wire.decode_to_engine(frame):
            match message:
                case wire.Hello():
                    self._emit(self._ready())
                case wire.Generate():
                    self._begin(message)
                case wire.Abort(request_ids):
                    for request_id in request_ids:
                        self._abort(request_id)
                case wire.StatsRequest(token):
                    self._emit(wire.Stats(token, {"num_requests_running": float(len(self._running))}))
                case wire.Tokenize(request_id, text, _, messages, _, render):
                    text = " ".join([text, *(message.content or "" for message in messages or ())])
                    ids = tuple(range(len(text.split())))
                    self._emit(wire.Texts(request_id, (text.strip(),)) if render else wire.Tokens(request_id, ids))
                case wire.Detokenize(request_id, token_ids, _, each):
                    words = [f"<{token}>" for token in token_ids]
                    self._emit(wire.Texts(request_id, tuple(words if each else [" ".join(words)])))
                case wire.LoadLora(request_id, name, path):
                    self._loras[name] = wire.LoraInfo(name, path, 1, ("q_proj",))
                    self._emit(wire.Loras(request_id, tuple(self._loras.values())))
                case wire.UnloadLora(request_id, name):
                    error = None if self._loras.pop(name, None) else f"lora={name!r} is not loaded"
                    self._emit(wire.Loras(request_id, tuple(self._loras.values()), error))
                case wire.ListLoras(request_id):
                    self._emit(wire.Loras(request_id, tuple(self._loras.values())))
                case wire.Goodbye() | wire.Drain():
                    self._running.clear()

    def receive(self) -> bytes | None:
        return self._outbox.popleft() if self._outbox else None

    def flush_and_close(self, seconds: float) -> None:
        self._running.clear()
        self._outbox.clear()

    # ---- the script ------------------------------------------------------------------------------------------------

    def _emit(self, *messages: object) -> None:
        assert self._loop is not None
        if not self._silent:
            self._outbox.append(wire.encode(list(messages)))
            self._loop.soon(self._on_readable)

    def _ready(self) -> wire.Ready:
        vocabulary = 1 << 31
        return wire.Ready(
            wire.PROTOCOL_VERSION,
            0,
            "scripted",
            self._options,
            "Scripted",
            True,
            True,
            vocabulary,
            1,
            (),
            self._chat_template,
        )

    def _reply(self, message: wire.Generate) -> Reply | str | None:
        if callable(self._script):
            return self._script(message)
        key = message.messages[-1].content if message.messages else message.text
        return self._script.get(key or "", self._default)

    def _begin(self, message: wire.Generate) -> None:
        self.requests.append(message)
        if message.lora is not None and message.lora not in self._loras:
            self._emit(wire.Failed(message.request_id, "unknown_lora", f"lora={message.lora!r} is not loaded"))
            return
        reply = self._reply(message)
        if reply is None:
            text = "the script has no answer to this prompt, and no default"
            self._emit(wire.Failed(message.request_id, "invalid_request", text))
            return
        self._running[message.request_id] = (message, Reply(reply) if isinstance(reply, str) else reply, 0)
        self._next(message.request_id)

    def _next(self, request_id: int) -> None:
        assert self._loop is not None
        if request_id not in self._running:
            return
        self._loop.later(self._running[request_id][1].delay, lambda: self._step(request_id))

    def _step(self, request_id: int) -> None:
        if request_id not in self._running:  # aborted meanwhile
            return
        message, reply, done = self._running[request_id]
        pieces = [] if message.task is not None else reply.pieces()
        limit = message.params.max_tokens
        total = len(pieces) if limit is None else min(len(pieces), limit)
        ends = done + 1 >= total
        reason = None
        if ends and not (reply.fail or reply.die or reply.hang):
            reason = "length" if total < len(pieces) else reply.finish_reason
        if done < total or (reason is not None and message.task is None):
            text = pieces[done] if done < total else ""
            ids = (done,) if done < total else ()
            self._emit(
                wire.Deltas([wire.Delta(request_id, i, text, ids, None, reason) for i in range(message.params.n)])
            )
        if not ends:
            self._running[request_id] = (message, reply, done + 1)
            self._next(request_id)
        elif reply.die:
            self.die()
        elif not reply.hang:
            del self._running[request_id]
            self._emit(self._ending(message, reply, reason, total))

    def _ending(self, message: wire.Generate, reply: Reply, reason: str | None, tokens: int) -> object:
        prompt = tuple(message.token_ids or range(len((message.text or "").split())))
        usage = wire.Usage(len(prompt), 0, tokens * message.params.n)
        if reason is None:
            which = "total" if reply.fail == "timeout" else None
            return wire.Failed(message.request_id, reply.fail or "failed", reply.message, which, prompt, usage)
        choices = tuple(wire.Choice(i, reason, None, None) for i in range(message.params.n))
        logprobs: tuple[wire.TokenLogprob | None, ...] | None = None
        read = reason != "abort"
        if read and message.params.prompt_logprobs is not None and reply.prompt_logprobs is not None:
            start = message.task.start if isinstance(message.task, wire.Score) else 0
            scored = zip(prompt[start + 1 :], reply.prompt_logprobs, strict=True)
            logprobs = tuple(wire.TokenLogprob(token, logprob, 1) for token, logprob in scored)
            if message.task is None:
                logprobs = (None, *logprobs)
        vector = None
        if read and isinstance(message.task, wire.Embed):
            vector = array("f", reply.embedding[: message.task.dimensions]).tobytes()
        return wire.Finished(message.request_id, choices, prompt, usage, logprobs, vector)

    def _abort(self, request_id: int) -> None:
        if request_id not in self._running:
            return
        message, reply, done = self._running.pop(request_id)
        self.aborted.append(request_id)
        self._emit(self._ending(message, reply, "abort", done))
