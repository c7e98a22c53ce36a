"""The app: routes, keys, limits, errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from octavo.errors import InvalidGrammar, OctavoError
from octavo.openai.chat import chat
from octavo.openai.completions import completions
from octavo.openai.cors import cors
from octavo.openai.dialogue import Dialogues
from octavo.openai.embeddings import EmbeddingRequest, embeddings
from octavo.openai.errors import HTTPError, answer_of, report
from octavo.openai.events import EventStream
from octavo.openai.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    LoadLoraRequest,
    TokenizeRequest,
    UnloadLoraRequest,
)
from octavo.openai.formats import Formats
from octavo.openai.gate import Gate
from octavo.openai.metrics import Metrics
from octavo.openai.openapi import document
from octavo.openai.page import Page
from octavo.openai.pieces import Pieces
from octavo.openai.response_fields import ResponsesRequest
from octavo.openai.response_store import ResponseStore
from octavo.openai.responses import delete_response, get_response, input_items, responses
from octavo.openai.telemetry import asked
from octavo.openai.wrong import WrongField

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.wire import LoraInfo

__all__ = ["Server", "create_app"]

T = TypeVar("T", bound=msgspec.Struct)


def create_app(
    client: AsyncClient,
    *,
    served_model_name: str | Sequence[str] | None = None,
    api_keys: Sequence[str] = (),
    max_body_bytes: int = 32 << 20,
    keep_alive: float = 15.0,
    health_timeout: float = 10.0,
    tool_parser: str = "auto",
    reasoning_parser: str = "auto",
    response_store_bytes: int = 64 << 20,
    page: bool = True,
    allowed_origins: Sequence[str] = (),
    allowed_methods: Sequence[str] = ("*",),
    allowed_headers: Sequence[str] = ("*",),
    allow_credentials: bool = False,
) -> Starlette:
    """An ASGI app over a client, which the caller opens and closes (in its own lifespan, say). Where its engine dies,
    requests get a 503 until the caller restarts it (AsyncClient.died, AsyncClient.restart).

    served_model_name: what requests call the model, the first being what /v1/models says; default: the last part of
    its path or hub id. api_keys: any of them must come as a bearer token, on every route but /health and the page's
    files; none: no check. max_body_bytes: longer requests are refused with 413. keep_alive: seconds of silence after
    which a stream gets a comment line. health_timeout: seconds the engine's step loop has to answer /health, /metrics.
    tool_parser: how the model writes tool calls, a name in octavo.openai.tools.FORMATS; "auto" sees it from the chat
    template. reasoning_parser: how it marks its thoughts, a name in octavo.openai.reasoning.REASONING, likewise; "none"
    leaves them in the text. response_store_bytes: memory for the last responses of /v1/responses, which later ones may
    continue; 0 keeps none (as where several processes answer, which would not know of each other's).
    page: also a page to chat with the model in a browser, at /; it asks for a key where one is needed.
    allowed_origins: whose web pages may call this in a browser ("https://app.example.com", "*": anybody's), by which
    methods and headers, and with cookies or not (CORS). Raises InvalidOption.
    """
    names = [served_model_name] if isinstance(served_model_name, str) else list(served_model_name or ())
    dialogues = Dialogues(client, tool_parser, reasoning_parser)
    store = ResponseStore(response_store_bytes)
    server = Server(client, names, dialogues, store, max_body_bytes, keep_alive, health_timeout, bool(api_keys))
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/load_lora_adapter", server.load_lora, methods=["POST"]),
        Route("/v1/unload_lora_adapter", server.unload_lora, methods=["POST"]),
        Route("/v1/responses", server.responses, methods=["POST"]),
        Route("/v1/responses/{id}", server.response, methods=["GET", "DELETE"]),
        Route("/v1/responses/{id}/input_items", server.input_items, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{model:path}", server.model, methods=["GET"]),
        Route("/tokenize", server.tokenize, methods=["POST"]),
        Route("/detokenize", server.detokenize, methods=["POST"]),
        Route("/openapi.json", server.openapi, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.metrics_text, methods=["GET"]),
    ]
    open_paths = {"/health"}
    if page:
        browser = Page(server)
        routes += browser.routes
        open_paths |= browser.open_paths
    kinds = (HTTPError, OctavoError, msgspec.ValidationError, msgspec.DecodeError, Exception)
    handlers: dict[Any, Any] = dict.fromkeys(kinds, _answer)
    handlers[HTTPException] = _routing
    handlers[ClientDisconnect] = _gone
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Gate, api_keys=tuple(api_keys), open_paths=frozenset(open_paths))
    browsers = cors(allowed_origins, allowed_methods, allowed_headers, allow_credentials)
    if browsers is not None:  # before the gate: a preflight brings no key, and an error is to be read, too
        app.add_middleware(CORSMiddleware, **browsers)
    return app


class Server:
    """What the routes share."""

    def __init__(
        self,
        client: AsyncClient,
        names: list[str],
        dialogues: Dialogues,
        store: ResponseStore,
        max_body_bytes: int,
        keep_alive: float,
        health_timeout: float,
        keys: bool,
    ) -> None:
        from octavo import __version__

        self.client, self.keep_alive, self.dialogues, self.store = client, keep_alive, dialogues, store
        self._version, self._fingerprint = __version__, f"octavo-{__version__}"
        self.pieces, self.metrics = Pieces(client), Metrics()
        self._names, self._max_body_bytes, self._health_timeout = names, max_body_bytes, health_timeout
        self._keys = keys

    @property
    def names(self) -> list[str]:
        return self._names or [self.client.options.model.rstrip("/").rpartition("/")[2]]

    # ---- routes ----------------------------------------------------------------------------------------------------

    async def chat(self, http: Request) -> Response:
        request = await self._read(http, ChatRequest)
        await self._check_model(request.model)
        asked("chat", request.model)
        return await _named(request, chat(self, http, request))

    async def completions(self, http: Request) -> Response:
        request = await self._read(http, CompletionRequest)
        await self._check_model(request.model)
        asked("text_completion", request.model)
        return await _named(request, completions(self, http, request))

    async def responses(self, http: Request) -> Response:
        request = await self._read(http, ResponsesRequest)
        await self._check_model(request.model)
        asked("chat", request.model)
        return await _named(request, responses(self, http, request))

    async def response(self, http: Request) -> Response:
        return await (delete_response if http.method == "DELETE" else get_response)(self, http)

    async def input_items(self, http: Request) -> Response:
        return await input_items(self, http)

    async def embeddings(self, http: Request) -> Response:
        request = await self._read(http, EmbeddingRequest)
        await self._check_model(request.model)
        return await embeddings(self, http, request)

    async def models(self, http: Request) -> Response:
        cards = [self._card(name) for name in self.names]
        if self.client.options.enable_lora:
            cards += [self._lora_card(lora) for lora in await self.client.loras()]
        return self.json({"object": "list", "data": cards})

    async def model(self, http: Request) -> Response:
        name = http.path_params["model"]
        lora = await self._check_model(name)
        return self.json(self._card(name) if lora is None else self._lora_card(lora))

    async def load_lora(self, http: Request) -> Response:
        request = await self._read(http, LoadLoraRequest)
        if request.lora_name in self.names:
            raise WrongField("lora_name", f"lora_name={request.lora_name!r} is the name of the model itself")
        await self.client.load_lora(request.lora_name, request.lora_path)
        return self.json(self._lora_card(await self._check_lora(request.lora_name)))

    async def unload_lora(self, http: Request) -> Response:
        name = (await self._read(http, UnloadLoraRequest)).lora_name
        await self._check_lora(name)
        await self.client.unload_lora(name)
        return self.json({"id": name, "object": "model", "deleted": True})

    async def tokenize(self, http: Request) -> Response:
        request = await self._read(http, TokenizeRequest)
        if (request.prompt is None) == (request.messages is None):
            raise WrongField("prompt", "exactly one of prompt and messages is needed")
        if request.messages is not None:
            messages = [message.plain(f"messages[{i}]") for i, message in enumerate(request.messages)]
            ids = await self.client.tokenize(messages, template=request.template())
        else:
            ids = await self.client.tokenize(request.prompt or "", special=request.add_special_tokens)
        return self.json({"tokens": ids, "count": len(ids), "max_model_len": self.client.options.max_model_len})

    async def detokenize(self, http: Request) -> Response:
        request = await self._read(http, DetokenizeRequest)
        return self.json({"prompt": await self.client.detokenize(request.tokens, skip_special_tokens=False)})

    async def openapi(self, http: Request) -> Response:
        return self.json(document(self._version, keys=self._keys, root=http.scope["root_path"]))

    async def health(self, http: Request) -> Response:
        await self.client.health(self._health_timeout)
        return self.json({"status": "ok"})

    async def metrics_text(self, http: Request) -> Response:
        text = self.metrics.text(await self.engine_figures())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # ---- what they need --------------------------------------------------------------------------------------------

    def head(self, prefix: str, kind: str, model: str) -> dict[str, Any]:
        """What every answer and chunk of one generation begins with."""
        now = int(time.time())
        head = {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": now, "model": model}
        return {**head, "system_fingerprint": self._fingerprint}

    async def engine_figures(self) -> dict[str, float]:
        """The engine's counters and gauges. Raises EngineUnresponsive after health_timeout seconds."""
        return await self.client.stats(self._health_timeout)

    @staticmethod
    def json(content: Any) -> Response:
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def _read(self, http: Request, kind: type[T]) -> T:
        body = bytearray()
        async for chunk in http.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                limit = f"the request has more than max_body_bytes={self._max_body_bytes} bytes"
                raise HTTPError(413, limit, "invalid_request_error", "request_too_large")
        try:
            return msgspec.json.decode(bytes(body), type=kind)
        except UnicodeDecodeError as error:
            raise HTTPError(400, f"JSON is written in UTF-8: {error}", "invalid_request_error") from None

    def lora(self, model: str) -> str | None:
        """The adapter that a request for `model` runs with."""
        return None if model in self.names else model

    async def _check_model(self, name: str) -> LoraInfo | None:
        """The adapter of that name, None for the model itself; another worker may have loaded it."""
        return None if name in self.names else await self._check_lora(name)

    async def _check_lora(self, name: str) -> LoraInfo:
        loras = await self.client.loras() if self.client.options.enable_lora else ()
        for lora in loras:
            if lora.name == name:
                return lora
        raise HTTPError(
            404,
            f"The model {name!r} does not exist; served here: {', '.join([*self.names, *(x.name for x in loras)])}",
            "invalid_request_error",
            "model_not_found",
            "model",
        )

    def _lora_card(self, lora: LoraInfo) -> dict[str, Any]:
        return {**self._card(lora.name), "parent": self.names[0], "root": lora.path}

    def _card(self, name: str) -> dict[str, Any]:
        length = self.client.options.max_model_len
        return {"id": name, "object": "model", "created": 0, "owned_by": "octavo", "max_model_len": length}


async def _named(request: Formats, work: Awaitable[Response]) -> Response:
    """The answer, whose errors name the fields of the request."""
    try:
        response = await work
    except InvalidGrammar as error:
        raise request.named(error) from error
    if isinstance(response, EventStream):
        response.named = request.named
    return response


async def _answer(http: Request, error: Exception) -> Response:
    report(http.url.path, error)
    status, body, headers = answer_of(error)
    return JSONResponse(body, status, headers)


async def _routing(http: Request, error: HTTPException) -> Response:
    wrong = HTTPError(error.status_code, f"{http.method} {http.url.path}: {error.detail}", "invalid_request_error")
    status, body, _ = answer_of(wrong)
    return JSONResponse(body, status, error.headers)


async def _gone(http: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
