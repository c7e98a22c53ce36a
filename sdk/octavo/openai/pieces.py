"""What tokens stand for, for logprobs: asked of the engine once a token, kept for the next time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.results import TokenLogprob

__all__ = ["Pieces"]

_REPLACEMENT = "\ufffd"
_LOWEST = -9999.0  # what OpenAI says for minus infinity, which JSON has not


class Pieces:
    """Token texts of one client's model; at most the vocabulary is kept."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._known: dict[int, str] = {}

    async def of(self, entries: Iterable[TokenLogprob | None]) -> dict[int, str]:
        """The texts of at least the tokens that the entries mention."""
        asked: set[int] = set()
        for entry in entries:
            if entry is not None:
                asked.add(entry.token_id)
                asked.update(token for token, _ in entry.top)
        missing = sorted(asked - self._known.keys())
        if missing:
            self._known.update(zip(missing, await self._client.token_texts(missing), strict=True))
        return self._known

    async def chat(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        """choices[].logprobs of a chat completion."""
        if entries is None:
            return None
        known = await self.of(entries)

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = known[token]
            # A part of a character has no bytes that its text would tell.
            data = None if _REPLACEMENT in text else list(text.encode())
            return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": data}

        content = [
            {**one(e.token_id, e.logprob), "top_logprobs": [one(token, value) for token, value in e.top]}
            for e in entries
        ]
        return {"content": content, "refusal": None}

    async def legacy(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None], offset: int
    ) -> tuple[dict[str, Any], int]:
        """choices[].logprobs of a completion whose text has had `offset` characters so far, and how many it has now.

        An entry is None for the first token of an echoed prompt, which nothing predicts.
        """
        known = await self.of(entries)
        missing = [token for token in token_ids if token not in known]
        if missing:
            known.update(zip(missing, await self._client.token_texts(missing), strict=True))
        offsets = []
        for token in token_ids:
            offsets.append(offset)
            offset += len(known[token])
        return {
            "tokens": [known[token] for token in token_ids],
            "token_logprobs": [None if e is None else max(e.logprob, _LOWEST) for e in entries],
            "top_logprobs": [None if e is None else {known[t]: max(v, _LOWEST) for t, v in e.top} for e in entries],
            "text_offset": offsets,
        }, offset
