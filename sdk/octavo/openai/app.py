"""The app: routes, keys, limits, errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from octavo.errors import InvalidGrammar, OctavoError
from octavo.openai.chat import chat
from octavo.openai.completions import completions
from octavo.openai.dialogue import Dialogues
from octavo.openai.errors import HTTPError, answer_of, report
from octavo.openai.events import EventStream
from octavo.openai.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from octavo.openai.formats import Formats
from octavo.openai.gate import Gate
from octavo.openai.metrics import Metrics
from octavo.openai.openapi import document
from octavo.openai.pieces import Pieces
from octavo.openai.response_fields import ResponsesRequest
from octavo.openai.response_store import ResponseStore
from octavo.openai.responses import delete_response, get_response, input_items, responses
from octavo.openai.telemetry import asked
from octavo.openai.wrong import WrongField

if TYPE_CHECKING:
    from octavo.client import AsyncClient

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
) -> Starlette:
    """An ASGI app over a client, which the caller opens and closes (in its own lifespan, say).

    served_model_name: what requests call the model, the first being what /v1/models says; default: the last part of
    its path or hub id. api_keys: any of them must come as a bearer token, on every route but /health; none: no check.
    max_body_bytes: longer requests are refused with 413. keep_alive: seconds of silence after which a stream gets a
    comment line. health_timeout: seconds the engine's step loop has to answer /health and /metrics.
    tool_parser: how the model writes tool calls, a name in octavo.openai.tools.FORMATS; "auto" sees it from the chat
    template. reasoning_parser: how it marks its thoughts, a name in octavo.openai.reasoning.REASONING, likewise; "none"
    leaves them in the text. response_store_bytes: memory for the last responses of /v1/responses, which later ones may
    continue; 0 keeps none (as where several processes answer, which would not know of each other's).
    """
    names = [served_model_name] if isinstance(served_model_name, str) else list(served_model_name or ())
    dialogues = Dialogues(client, tool_parser, reasoning_parser)
    store = ResponseStore(response_store_bytes)
    server = Server(client, names, dialogues, store, max_body_bytes, keep_alive, health_timeout, bool(api_keys))
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
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
    kinds = (HTTPError, OctavoError, msgspec.ValidationError, msgspec.DecodeError, Exception)
    handlers: dict[Any, Any] = dict.fromkeys(kinds, _answer)
    handlers[HTTPException] = _routing
    handlers[ClientDisconnect] = _gone
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.add_middleware(Gate, api_keys=tuple(api_keys))
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
        self._check_model(request.model)
        asked("chat", request.model)
        return await _named(request, chat(self, http, request))

    async def completions(self, http: Request) -> Response:
        request = await self._read(http, CompletionRequest)
        self._check_model(request.model)
        asked("text_completion", request.model)
        return await _named(request, completions(self, http, request))

    async def responses(self, http: Request) -> Response:
        request = await self._read(http, ResponsesRequest)
        self._check_model(request.model)
        asked("chat", request.model)
        return await _named(request, responses(self, http, request))

    async def response(self, http: Request) -> Response:
        return await (delete_response if http.method == "DELETE" else get_response)(self, http)

    async def input_items(self, http: Request) -> Response:
        return await input_items(self, http)

    async def models(self, http: Request) -> Response:
        return self.json({"object": "list", "data": [self._card(name) for name in self.names]})

    async def model(self, http: Request) -> Response:
        name = http.path_params["model"]
        self._check_model(name)
        return self.json(self._card(name))

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
        return self.json(document(self._version, keys=self._keys))

    async def health(self, http: Request) -> Response:
        await self.client.health(self._health_timeout)
        return self.json({"status": "ok"})

    async def metrics_text(self, http: Request) -> Response:
        text = self.metrics.text(await self.client.stats(self._health_timeout))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # ---- what they need --------------------------------------------------------------------------------------------

    def head(self, prefix: str, kind: str, model: str) -> dict[str, Any]:
        """What every answer and chunk of one generation begins with."""
        now = int(time.time())
        head = {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": now, "model": model}
        return {**head, "system_fingerprint": self._fingerprint}

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
        return msgspec.json.decode(bytes(body), type=kind)

    def _check_model(self, name: str) -> None:
        if name not in self.names:
            raise HTTPError(
                404,
                f"The model {name!r} does not exist; served here: {', '.join(self.names)}",
                "invalid_request_error",
                "model_not_found",
                "model",
            )

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
