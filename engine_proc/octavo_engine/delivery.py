"""One request's life in the engine, and how its tokens become text and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo import wire
from octavo_engine.execution.pooling import vector_bytes
from octavo_engine.text import Detokenizer, Stream, Text

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_engine.adapters import Loaded
    from octavo_engine.mailbox import Client
    from octavo_engine.scheduling.sequence import Request, Sequence

__all__ = ["Live"]


class Live:
    """A request from its arrival to its one Finished or Failed. Times are in seconds of the core's clock."""

    __slots__ = (
        "adapter",
        "arrival",
        "client",
        "cumulative",
        "delivered",
        "detokenizers",
        "embedding",
        "ends",
        "first_token",
        "generate",
        "open_choices",
        "prompt_logprobs",
        "request",
        "scores",
        "started",
        "stopped",
        "streams",
    )

    def __init__(self, client: Client, generate: wire.Generate, arrival: float) -> None:
        self.client = client
        self.generate = generate
        self.arrival = arrival
        self.started: float | None = None
        self.first_token: float | None = None
        self.request: Request | None = None  # None while a long prompt is being tokenised
        self.detokenizers: list[Detokenizer] = []
        self.streams: list[Stream | None] = []  # of each choice, where its tokens have nothing but text
        self.cumulative: list[float] = []
        self.scores: list[float | None] | None = None  # of a beam search
        self.delivered: list[int | None] = [None] * generate.params.n  # tokens of each choice that has ended
        self.prompt_logprobs: list[wire.TokenLogprob | None] | None = None
        self.stopped = [False] * generate.params.n  # by a stop string
        self.adapter: Loaded | None = None
        self.embedding: bytes | None = None
        self.open_choices = generate.params.n
        self.ends: list[tuple[str, str | int | None]] = [("abort", None)] * generate.params.n

    def waits_for(self, which: str) -> bool:
        """What the deadline "queue", "first_token" or "total" is about has not come."""
        return {"queue": self.started, "first_token": self.first_token}.get(which) is None

    def admit(self, request: Request, text: Text) -> None:
        """The scheduler has taken it."""
        params = self.generate.params
        self.request = request
        if request.draws:
            chats = self.generate.messages is not None and not params.ignore_eos and request.search is None
            stop = text.chat_stop if chats else ()
            self.detokenizers = [Detokenizer(text, params, request.prompt, stop) for _ in range(params.n)]
            self.streams = [d.stream if params.logprobs is None else None for d in self.detokenizers]
        self.cumulative = [0.0] * params.n
        if params.prompt_logprobs is not None:
            # Nothing comes before the first token.
            self.prompt_logprobs = [] if isinstance(self.generate.task, wire.Score) else [None]

    def take_logprobs(self, entries: list[wire.TokenLogprob]) -> bool:
        """Of the next tokens of the prompt. True if with them it is scored, and nothing else was asked for."""
        if self.prompt_logprobs is None or self.request is None:
            return False
        self.prompt_logprobs.extend(entries)
        task = self.generate.task
        if not isinstance(task, wire.Score) or len(self.prompt_logprobs) < len(self.request.prompt) - 1 - task.start:
            return False
        self.ends = [("stop", None)]
        return True

    def take_vector(self, vector: Tensor) -> None:
        """The pooled hidden states, [E] float32. Raises NotFinite."""
        task = self.generate.task
        assert isinstance(task, wire.Embed)
        self.embedding = vector_bytes(vector, normalize=task.normalize, dimensions=task.dimensions)
        self.ends = [("stop", None)]

    def delta(
        self, sequence: Sequence, token: int, logprob: wire.TokenLogprob | None, behind: int = 0
    ) -> tuple[wire.Delta, str | None] | None:
        """The message for one new token, and the stop string that it completed, if any. behind: so many more came in
        the same step; None for those behind a stop string."""
        index = sequence.index
        if self.stopped[index]:
            return None
        reason, stop_reason = None, None
        if not behind:
            reason, stop_reason = sequence.finish_reason, sequence.stop_reason
        if logprob is not None:
            self.cumulative[index] += logprob.logprob
        # What ended the text (an end-of-sequence or stop token) is not part of it, unless asked for.
        hidden = reason == "stop" and not self.generate.params.include_stop_str_in_output
        piece = self.detokenizers[index].push([] if hidden else [token], reason is not None)
        if piece.stop is not None:
            self.stopped[index] = True
            reason, stop_reason = "stop", piece.stop
        if reason is not None:
            self.open_choices -= 1
            self.ends[index] = (reason, stop_reason)
            self.delivered[index] = len(sequence.output) - behind
        delta = wire.Delta(
            self.generate.request_id,
            index,
            piece.text,
            (token,),
            None if logprob is None else (logprob,),
            reason,
            stop_reason,
        )
        return delta, piece.stop

    def found(self, request: Request) -> list[wire.Delta]:
        """The messages for all choices of a beam search that has ended."""
        assert request.search is not None
        params = self.generate.params
        best = request.search.finished[: params.n]
        deltas = []
        for index, text in enumerate(best):
            entries = tuple(
                wire.TokenLogprob(step.token, step.logprob, step.rank, tuple(step.top)) for step in text.steps
            )
            tokens = tuple(entry.token_id for entry in entries)
            hidden = text.token is not None and not params.include_stop_str_in_output
            piece = self.detokenizers[index].push(tokens[:-1] if hidden else tokens, True)
            is_eos = text.token in request.eos_token_ids and not params.ignore_eos
            reason, stop_reason = ("length", None) if text.token is None else ("stop", None if is_eos else text.token)
            self.ends[index] = reason, stop_reason
            self.delivered[index], self.cumulative[index] = len(tokens), text.total
            logprobs = None if params.logprobs is None else entries
            deltas.append(
                wire.Delta(self.generate.request_id, index, piece.text, tokens, logprobs, reason, stop_reason)
            )
        self.scores = [*(text.score for text in best), *[None] * (params.n - len(best))]
        return deltas

    def held_back(self) -> list[wire.Delta]:
        """Text of choices cut off in the middle that was held back for a possible stop string or a character's end."""
        deltas = []
        for index, (reason, _) in enumerate(self.ends):
            if reason == "abort" and self.detokenizers:
                text = self.detokenizers[index].push([], True).text
                if text:
                    deltas.append(wire.Delta(self.generate.request_id, index, text, ()))
        return deltas

    def finished(self, now: float) -> wire.Finished:
        """The closing message; choices that are still open end as aborted."""
        scores = self.scores
        summed = scores is not None or (self.generate.params.logprobs is not None and self.request is not None)
        choices = tuple(
            wire.Choice(
                index,
                reason,
                stop_reason,
                self.cumulative[index] if summed else None,
                None if scores is None else scores[index],
            )
            for index, (reason, stop_reason) in enumerate(self.ends)
        )
        return wire.Finished(
            self.generate.request_id,
            choices,
            tuple(self.request.prompt) if self.request is not None else (),
            self.usage(now),
            None if self.prompt_logprobs is None else tuple(self.prompt_logprobs),
            self.embedding,
        )

    def failed(self, code: str, message: str, now: float, which: str | None = None) -> wire.Failed:
        """The closing message of a request that ends in an error."""
        prompt = tuple(self.request.prompt) if self.request is not None else ()
        return wire.Failed(self.generate.request_id, code, message, which, prompt, self.usage(now))

    def usage(self, now: float) -> wire.Usage:
        if self.request is None:
            return wire.Usage(total_seconds=now - self.arrival, queue_seconds=now - self.arrival)
        return wire.Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=max((s.num_cached for s in self.request.sequences), default=0),
            completion_tokens=sum(map(self._delivered, range(len(self.delivered)))),
            queue_seconds=(now if self.started is None else self.started) - self.arrival,
            first_token_seconds=None if self.first_token is None else self.first_token - self.arrival,
            total_seconds=now - self.arrival,
        )

    def _delivered(self, index: int) -> int:
        """Tokens of a choice. Those of a beam search come with its end."""
        request, count = self.request, self.delivered[index]
        assert request is not None
        if count is None:
            count = len(request.sequences[index].output) if request.search is None else 0
        return count
