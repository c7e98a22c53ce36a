"""Requests whose prompts are only read: embeddings and scores, any number of them in one call."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo import wire
from octavo.errors import InvalidOption, InvalidRequest, RequestFailed
from octavo.options import SamplingParams
from octavo.prompts import Prompt, checked_ids, ids_of, items_of
from octavo.results import Embeddings, Score, Usage
from octavo.stream import end_of

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.router import Router

__all__ = ["embed", "prompts_of", "read_all", "score"]

# Requests of one call that are in flight: enough to fill the engine's steps, few enough not to fill its queue.
_AT_ONCE = 256

Make = Callable[[int], wire.Generate]


async def read_all(router: Router, makes: Iterable[Make]) -> list[wire.Finished]:
    """All answers, in order. The first error ends the others, as does leaving."""
    flying: deque[Any] = deque()
    done: list[wire.Finished] = []
    try:
        for make in makes:
            if len(flying) == _AT_ONCE:
                done.append(_read(await end_of(router, flying[0])))
                flying.popleft()
            flying.append(router.submit(False, make))
        while flying:
            done.append(_read(await end_of(router, flying[0])))
            flying.popleft()
    except BaseException:
        for request in flying:
            router.forget(request)
        raise
    return done


def _read(done: wire.Finished) -> wire.Finished:
    if done.choices[0].finish_reason == "abort":
        raise RequestFailed("the request was aborted before its prompt had been read")
    return done


def usage_of(done: Sequence[wire.Finished]) -> Usage:
    """The tokens of all; the times are the longest."""
    return Usage(
        sum(one.usage.prompt_tokens for one in done),
        sum(one.usage.cached_tokens for one in done),
        0,
        max((one.usage.queue_seconds for one in done), default=0.0),
        None,
        max((one.usage.total_seconds for one in done), default=0.0),
    )


async def embed(
    router: Router, prompts: Sequence[str | list[int]], task: wire.Embed, params: SamplingParams, lora: str | None
) -> Embeddings:
    """See AsyncClient.embed; prompts are checked."""
    if task.pooling not in ("mean", "last"):
        raise InvalidOption("pooling", task.pooling, "'mean' or 'last'")
    size: Any = task.dimensions
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 1 << 31):
        raise InvalidOption("dimensions", size, "None or a whole number >= 1")

    def make(prompt: str | list[int]) -> Make:
        return lambda number: _generate(number, params, prompt, task, lora)

    done = await read_all(router, map(make, prompts))
    return Embeddings(tuple(_floats(one.embedding or b"") for one in done), usage_of(done))


def _floats(data: bytes) -> array[float]:
    # Beside a list of Python floats (8 times the memory) and ready for numpy.asarray, torch.frombuffer and struct.
    vector = array("f")
    vector.frombytes(data)
    return vector


async def score(
    client: AsyncClient,
    router: Router,
    prompt: Prompt,
    continuations: Sequence[str] | Sequence[Sequence[int]],
    params: SamplingParams,
    lora: str | None,
) -> list[Score]:
    """See AsyncClient.score."""
    if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Iterable):
        raise InvalidRequest(f"continuations: a list of texts or token ids, not {type(continuations).__name__}")
    text, special, prefix = await _prefix(client, prompt)
    requests = []
    for continuation in continuations:
        if isinstance(continuation, str):
            if text is None:
                raise InvalidRequest("continuations: a prompt of token ids is continued by token ids")
            whole = await router.tokenize(text + continuation, special, None, None)
        else:
            whole = prefix + ids_of(continuation, "continuations: texts or token ids")
        requests.append(score_request(prefix, whole, params, lora))
    first = await read_all(router, [make for make, _ in requests[:1]])
    rest = await read_all(router, [make for make, _ in requests[1:]])
    return [scored(done, count) for done, (_, count) in zip(first + rest, requests, strict=True)]


async def _prefix(client: AsyncClient, prompt: Prompt) -> tuple[str | None, bool, list[int]]:
    """Of a prompt its text, whether special tokens are put around that, and its token ids."""
    if isinstance(prompt, str):
        return prompt, True, await client.tokenize(prompt)
    items = items_of(prompt)
    if items and isinstance(items[0], (Mapping, wire.Message)):
        text = await client.apply_chat_template(items)
        return text, False, await client.tokenize(text, special=False)
    return None, False, checked_ids(items)


def score_request(prefix: list[int], whole: list[int], params: SamplingParams, lora: str | None) -> tuple[Make, int]:
    """The request for what `whole` says beyond what it shares with `prefix`, and how many tokens those are."""
    shared = 0
    for ours, theirs in zip(prefix, whole, strict=False):
        if ours != theirs:
            break
        shared += 1
    if shared == len(whole):
        raise InvalidRequest("continuations: one adds no token to the prompt")
    if not shared:
        raise InvalidRequest("prompt: at least one token is needed before what is scored")
    task = wire.Score(shared - 1)
    return lambda number: _generate(number, params, whole, task, lora), len(whole) - shared


def scored(done: wire.Finished, count: int) -> Score:
    """What a score_request has found."""
    entries = [entry for entry in (done.prompt_logprobs or ())[-count:] if entry is not None]
    return Score(tuple(entry.token_id for entry in entries), tuple(entry.logprob for entry in entries))


def _generate(
    number: int, params: SamplingParams, prompt: str | list[int], task: wire.Embed | wire.Score, lora: str | None
) -> wire.Generate:
    if isinstance(prompt, str):
        return wire.Generate(number, params, text=prompt, task=task, lora=lora)
    return wire.Generate(number, params, token_ids=prompt, task=task, lora=lora)


def prompts_of(inputs: Any, token_ids: Callable[[list[Any]], list[int]]) -> list[str | list[int]]:
    """One or several texts or lists of token ids, as a list of them. Raises InvalidRequest."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, (bytes, dict)) or not isinstance(inputs, Iterable):
        raise InvalidRequest(f"inputs: texts or token ids are needed, not {type(inputs).__name__}")
    items = list(inputs)
    if items and not isinstance(items[0], (str, Sequence)):
        return [token_ids(items)]
    return list(_each(items, token_ids))


def _each(items: list[Any], token_ids: Callable[[list[Any]], list[int]]) -> Iterator[str | list[int]]:
    for item in items:
        if isinstance(item, str):
            yield item
        elif isinstance(item, (bytes, dict)) or not isinstance(item, Iterable):
            raise InvalidRequest(f"inputs: each is a text or a list of token ids, not {type(item).__name__}")
        else:
            yield token_ids(list(item))
