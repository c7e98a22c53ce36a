"""AsyncClient: spawn or join an engine, generate, stream, close."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import anyio

from octavo import wire
from octavo.best_of import best, drawn
from octavo.chats import template_variables
from octavo.checks import flag, number
from octavo.errors import ClientClosed, EngineUnresponsive, InvalidRequest, OctavoError
from octavo.options import EngineOptions, SamplingParams
from octavo.prompts import (
    DEFAULT_PARAMS,
    Messages,
    Params,
    Prompt,
    checked_ids,
    generate_message,
    ids_of,
    lora_name,
    named_options,
    read_params,
    turns_of,
)
from octavo.results import Completion, Embeddings, Score
from octavo.stream import Stream, completion, end_of

if TYPE_CHECKING:
    from typing import Self

    from octavo.engines import JoinedEngine
    from octavo.transport import Key, Transport

__all__ = ["AsyncClient", "Prompt"]


class AsyncClient:
    """A client with an engine process of its own; `connect` joins a shared one instead.

        async with AsyncClient("path/or/hub-id") as client:
            print((await client.generate("Once upon a time")).text)

    Runs on asyncio, uvloop and trio, in any thread; one client belongs to the event loop that opened it. Any number of
    tasks may use it at once. Entering opens it, leaving closes it: the engine has been reaped by then.

    model and options.model are the same thing given twice: either will do. on_progress is called with
    wire.Progress (stage, bytes done, bytes in total) while the model is fetched and loaded. share: other processes of
    this user may join the engine at `address`, for as long as this client is open.

    Opening raises EngineNotInstalled, ModelError, InvalidOption, ProtocolMismatch or EngineStartError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        options: EngineOptions | None = None,
        *,
        on_progress: Callable[[wire.Progress], None] | None = None,
        share: bool = False,
        _command: Sequence[str] | None = None,
    ) -> None:
        options = named_options(model, options)
        # Here, and not with the module: ZeroMQ and what spawning needs are half of what importing octavo would cost.
        from octavo.engines import SpawnedEngine
        from octavo.session import Session

        self._asked = options
        self._session = Session(SpawnedEngine(options, _command, share), options, on_progress)

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        ready_timeout: float = 120.0,
        heartbeat_timeout: float = 60.0,
        on_progress: Callable[[wire.Progress], None] | None = None,
        server_public_key: Key | None = None,
        public_key: Key | None = None,
        secret_key: Key | None = None,
        peer_timeout: float = 30.0,
    ) -> Self:
        """Join the shared engine at address, "ipc:///path" or "tcp://host:port"; an open client.

        Waits up to ready_timeout seconds for an engine that still loads or is not there yet. Closing leaves it running.
        heartbeat_timeout: as in EngineOptions.

        Over tcp all is encrypted. server_public_key: the engine's, which no other can pretend to be. secret_key: this
        client's, whose public key the engine must know (`octavo engine --clients`). A key is a string of 40 characters,
        or the Path of a certificate that holds it (`octavo keys`). An engine that is silent for peer_timeout seconds,
        where even computing it answers ZeroMQ's heartbeats, has gone: EngineDead. Paths are the engine's machine's.
        Raises InvalidOption, EngineStartError, AccessDenied for wrong keys, or ProtocolMismatch.
        """
        from octavo.engines import JoinedEngine
        from octavo.transport import curve_keys

        options = EngineOptions(ready_timeout=ready_timeout, heartbeat_timeout=heartbeat_timeout)
        number("peer_timeout", peer_timeout, 0.0, 86400.0, above=True)
        keys = curve_keys(address, server_public_key, public_key, secret_key)
        client = cls._over(JoinedEngine(address, keys, peer_timeout=peer_timeout), options, on_progress)
        await client.open()
        return client

    @classmethod
    def _over(
        cls, engine: JoinedEngine, options: EngineOptions, on_progress: Callable[[wire.Progress], None] | None = None
    ) -> Self:
        from octavo.session import Session

        client = cls.__new__(cls)
        client._asked = options
        client._session = Session(engine, options, on_progress)
        return client

    @classmethod
    def over(cls, transport: Transport) -> Self:
        """A client, yet to be opened, of whatever answers at the other end of transport (see octavo.testing)."""
        from octavo.engines import JoinedEngine

        return cls._over(JoinedEngine("memory", None, transport), EngineOptions())

    # ---- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Start (or join) the engine and wait until it is ready; at once if it is. ClientClosed on another loop."""
        await self._session.open(self)
        return self

    async def close(self) -> str:
        """End the engine, or leave it if it is shared; requests that still run get ClientClosed. Idempotent.

        On the loop that opened the client, or, once that has ended, on any. Returns how the engine ended: "drained"
        (asked), "terminated" (SIGTERM), "killed" (SIGKILL), "gone" (it was dead already) or "left" (it is shared). The
        process has been reaped then, however the caller was cancelled meanwhile.
        """
        return await self._session.close()

    async def died(self) -> OctavoError:
        """Wait until the engine has died, and say of what. Raises ClientClosed where the client is closed instead."""
        return await self._session.died()

    async def restart(self) -> Self:
        """A new engine in place of one that has died (or of this one); a shared one is joined again.

        The adapters of the last one are loaded again. What ran has ended in its error; requests raise EngineDead until
        this returns. Raises what opening raises, and may be called again then; by one task at a time.
        """
        with self._session.succession.next_engine():
            self._session = await self._session.succeeded()
            await self._session.open(self)
            await self._session.load_again()
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncClient can't be copied or sent to another process: give that one the `address` of a client opened "
            "with share=True, to join its engine with AsyncClient.connect"
        )

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def ready(self) -> wire.Ready:
        """What the engine said when it became ready: its pid, resolved options, architecture, vocabulary size..."""
        self._session.succession.check()
        ready = self._session.ready
        if ready is None:
            raise ClientClosed("the client has not been opened: use `async with` or await open()")
        return ready

    @property
    def address(self) -> str:
        """What other processes give to `connect`, to share this client's engine; "" unless open with share=True."""
        return self._session.address

    @property
    def options(self) -> EngineOptions:
        """As resolved by the engine once it is ready; before, as given."""
        return self._asked if self._session.ready is None else self._session.ready.options

    # ---- requests --------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        lora: str | None = None,
    ) -> Completion:
        """The whole answer to a prompt; cancelling it aborts the request. lora: by an adapter that is loaded.

        template: what the chat template reads besides the messages: {"tools": [...], "enable_thinking": False, ...}.

        Raises InvalidRequest, PromptTooLong, Overloaded, RequestTimeout (with what came in `partial`), RequestFailed,
        EngineDead, EngineUnresponsive (no sign of life for options.heartbeat_timeout) or ClientClosed.
        """
        if isinstance(params, SamplingParams) and params.best_of is not None:
            return best(await self.generate(prompt, drawn(params)), params)
        router = self._session.router
        request = router.submit(False, generate_message(prompt, params, template, lora))
        finished = await end_of(router, request)
        done = completion(request.pending, finished)
        assert done is not None
        return done

    def stream(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        lora: str | None = None,
    ) -> Stream:
        """The answer as it comes. The request is sent now; `async for delta in` the result reads it.

        Leaving the stream in any way aborts the request. A beam search gives one delta a choice, at the end.
        """
        if params is None:
            params = DEFAULT_PARAMS
        if isinstance(params, SamplingParams) and params.best_of is not None:
            raise InvalidRequest("best_of: which are best is known only at the end; ask for them with generate")
        router = self._session.router
        return Stream(self, router, router.submit(True, generate_message(prompt, params, template, lora)), params.n)

    async def chat(
        self,
        messages: Messages,
        params: Params | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        lora: str | None = None,
    ) -> Completion:
        """`generate` for chat messages: {"role": ..., "content": ...}, through the model's chat template."""
        if isinstance(messages, str) or not messages:
            raise InvalidRequest('messages: give at least one {"role": ..., "content": ...}')
        return await self.generate(messages, params, template=template, lora=lora)

    # ---- prompts that are only read ------------------------------------------------------------------------------

    async def embed(
        self,
        inputs: str | Sequence[int] | Sequence[str | Sequence[int]],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
        lora: str | None = None,
        params: SamplingParams | None = None,
    ) -> Embeddings:
        """A vector for each text (or list of token ids): the model's hidden states behind its final norm, pooled.

        pooling: "mean" of all tokens, or "last", for models trained so; both see the special tokens that the tokenizer
        puts around a prompt. dimensions: only the first ones. normalize: to length 1, so that a dot product is the
        cosine. params: for its priority and timeouts; the rest says nothing here. The engine batches the texts with all
        else; any number may be given. Raises as `generate` does; the first error ends them all.
        """
        from octavo import reading

        prompts = reading.prompts_of(inputs, checked_ids)
        task = wire.Embed(pooling, bool(normalize), dimensions)
        return await reading.embed(self._session.router, prompts, task, read_params(params), lora_name(lora))

    async def score(
        self,
        prompt: Prompt,
        continuations: Sequence[str] | Sequence[Sequence[int]],
        *,
        lora: str | None = None,
        params: SamplingParams | None = None,
    ) -> list[Score]:
        """How likely each continuation of the prompt is: the log probabilities of its tokens.

        A text is tokenised together with the prompt, as it would be read; where a token reaches over the border, it is
        scored whole. A continuation of token ids is put behind the prompt's. The prompt itself is computed once and
        found in the prefix cache by the others. params: for its priority and timeouts. Raises as `generate` does, and
        InvalidRequest for a continuation without tokens.
        """
        from octavo import reading

        params = read_params(params, prompt_logprobs=0)
        return await reading.score(self, self._session.router, prompt, continuations, params, lora_name(lora))

    async def abort(self, *streams: Stream) -> None:
        """End these streams, or everything in flight where none is given; each ends with finish_reason "abort"."""
        router = self._session.router
        if streams:
            if wrong := [stream for stream in streams if not isinstance(stream, Stream)]:
                raise InvalidRequest(f"streams: what AsyncClient.stream returns is needed, not {wrong[0]!r:.40}")
            router.abort([stream.request_id for stream in streams])
        else:
            router.abort_all()

    async def tokenize(
        self, text: str | Messages, *, special: bool = True, template: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The token ids of a text of any length, or of chat messages, by the model's tokenizer (and template).

        special: with the tokens that the tokenizer puts around a prompt, so that the result is what `generate(text)`
        would run; a chat's template writes its own. template: as in generate. Raises InvalidRequest where the
        checkpoint has no tokenizer or template.
        """
        flag("special", special)
        if isinstance(text, str):
            return await self._session.router.tokenize(text, special, None, None)
        turns = turns_of("text: a string or chat messages", text)
        return await self._session.router.tokenize("", special, turns, template_variables(template))

    @overload
    async def apply_chat_template(
        self,
        messages: Messages,
        *,
        tokenize: Literal[False] = False,
        add_generation_prompt: bool = True,
        template: Mapping[str, Any] | None = None,
    ) -> str: ...

    @overload
    async def apply_chat_template(
        self,
        messages: Messages,
        *,
        tokenize: Literal[True],
        add_generation_prompt: bool = True,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    async def apply_chat_template(
        self,
        messages: Messages,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        template: Mapping[str, Any] | None = None,
    ) -> str | list[int]:
        """What the model's chat template makes of messages: the text, or with `tokenize` its token ids.

        add_generation_prompt: with what begins the assistant's answer, as in the prompt that `generate(messages)` runs.
        template: as in `generate`. The text holds the special tokens that the template writes: `tokenize(text,
        special=False)` gives its ids. Raises InvalidRequest where the checkpoint has no tokenizer or template, or the
        template refuses the messages.
        """
        turns = turns_of("messages: chat messages", messages)
        flag("add_generation_prompt", add_generation_prompt)
        variables = template_variables(template, add_generation_prompt=add_generation_prompt)
        if tokenize:
            return await self._session.router.tokenize("", False, turns, variables)
        return await self._session.router.render(turns, variables)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence of token ids. Raises InvalidRequest where the checkpoint has no tokenizer."""
        flag("skip_special_tokens", skip_special_tokens)
        texts = await self._session.router.detokenize(ids_of(token_ids), skip_special_tokens, False)
        return texts[0]

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """What each token stands for by itself, special ones by their names; U+FFFD for a part of a character."""
        return list(await self._session.router.detokenize(ids_of(token_ids), False, True))

    # ---- adapters --------------------------------------------------------------------------------------------------

    async def load_lora(self, name: str, path: str | os.PathLike[str]) -> None:
        """Load a LoRA adapter in peft's format, from a folder on the engine's machine or of a hub id, under a name.

        Requests choose it with `lora=name`; any number of adapters run side by side in one batch. Loading the same path
        under the same name again changes nothing. Raises LoraError for what can't be read or is none for this model,
        and where EngineOptions.max_loras are loaded.
        """
        folder = os.fsdecode(path)
        await self._session.loras(lambda number: wire.LoadLora(number, lora_name(name) or "", folder))

    async def unload_lora(self, name: str) -> None:
        """No new request can name it from now on; returns when those that run with it have ended.

        Raises LoraError where none of that name is loaded.
        """
        await self._session.loras(lambda number: wire.UnloadLora(number, lora_name(name) or ""))

    async def loras(self) -> tuple[wire.LoraInfo, ...]:
        """The adapters that are loaded: name, path, rank, modules."""
        return await self._session.loras(wire.ListLoras)

    async def stats(self, timeout: float = 10.0) -> dict[str, float]:
        """The engine's counters and gauges by name. Raises EngineUnresponsive after timeout seconds."""
        with anyio.move_on_after(timeout):
            return await self._session.router.stats()
        raise EngineUnresponsive(
            f"the engine's step loop did not answer within timeout={timeout:g} s: it hangs, is stopped, or a step "
            "takes that long"
        )

    async def health(self, timeout: float = 10.0) -> None:
        """Return if the engine's step loop answers within timeout seconds. Raises EngineUnresponsive or EngineDead."""
        await self.stats(timeout)
