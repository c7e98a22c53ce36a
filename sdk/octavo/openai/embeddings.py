"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from array import array
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.openai.events import until_gone
from octavo.openai.fields import WrongField

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.openai.app import Server

__all__ = ["EmbeddingRequest", "embeddings"]

_MOST_INPUTS = 2048  # OpenAI's own limit


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """input: a text, texts, token ids, or a list of those. pooling and normalize are ours; OpenAI's vectors have
    length 1, and so have these unless it is asked otherwise."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    pooling: str | None = None
    normalize: bool | None = None

    def inputs(self) -> list[str | list[int]]:
        given: Any = self.input
        kinds = {str} if isinstance(given, str) else set(map(type, given))
        if len(kinds) != 1:
            raise WrongField("input", "input: a text, texts, token ids or lists of token ids, and not of several kinds")
        prompts = [given] if isinstance(given, str) or kinds == {int} else given
        if len(prompts) > _MOST_INPUTS:
            raise WrongField("input", f"input: {len(prompts)} texts, at most {_MOST_INPUTS} are allowed")
        if not all(prompts):
            raise WrongField("input", "input: an empty text has no embedding")
        return prompts


async def embeddings(server: Server, http: Request, request: EmbeddingRequest) -> Response:
    prompts, form = request.inputs(), request.encoding_format or "float"
    if form not in ("float", "base64"):
        raise WrongField("encoding_format", f"encoding_format={form!r}: 'float' or 'base64'")
    pooling: Any = request.pooling or "mean"
    normalize = request.normalize is not False
    made = await until_gone(
        http,
        lambda: server.client.embed(
            prompts,
            pooling=pooling,
            normalize=normalize,
            dimensions=request.dimensions,
            lora=server.lora(request.model),
        ),
    )
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, form)}
        for i, vector in enumerate(made.vectors)
    ]
    tokens = made.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return server.json({"object": "list", "data": data, "model": request.model, "usage": usage})


def _encoded(vector: array[float], form: str) -> Any:
    return base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()
