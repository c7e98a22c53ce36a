"""From a Generate message to a scheduling.Request: checks against the model, tokenising, seeds.

And the answers to Tokenize and Detokenize.

Short texts are tokenised on the engine thread. Long ones, and what is too much for one round of its loop, go to a
worker thread (the tokenizers library releases the GIL), so that neither a prompt of 5 MB nor a hundred of 5 kB that
come at once hold up the steps of everybody else.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from octavo import wire
from octavo.options import MAX_LOGPROBS, SamplingParams
from octavo_engine.chats import chat_length, render_chat
from octavo_engine.execution.processors import Processors
from octavo_engine.scheduling.beam_search import BeamSearch
from octavo_engine.scheduling.sequence import Request
from octavo_engine.text import Text, TextError

__all__ = ["Intake", "InvalidPrompt", "TextTooLong"]

# Characters tokenised in place between two steps; at about 1 us a character's worth of BPE this stays under ten
# milliseconds.
_INLINE_CHARACTERS = 8192
# Characters a token: a text of fewer than that is not measured by the tokenizer's longest, which takes a look at all.
_COMMON_TOKEN = 16


def _answer_kind(message: wire.Tokenize | wire.Detokenize) -> type[wire.Tokens] | type[wire.Texts]:
    """Of what it is answered by, the error included."""
    return wire.Texts if isinstance(message, wire.Detokenize) or message.render else wire.Tokens


class InvalidPrompt(Exception):
    """The request can't be served as asked; the message names the value and what is allowed."""


class TextTooLong(InvalidPrompt):
    """It has more characters than any max_model_len tokens: not tokenised, which would take long and much memory."""


class Tokenised(NamedTuple):
    """What Intake.request makes a Request of. seed: drawn when the message came, where it has none."""

    prompt: list[int]
    bad_words: list[list[int]]
    seed: int


class Intake:
    """Turns Generate messages into Requests, now or (for long prompts) a little later.

    `wake` is called from the worker thread when one has become ready.
    """

    def __init__(
        self, text: Text, ready: wire.Ready, wake: Callable[[], None], processors: Processors | None = None
    ) -> None:
        self._text, self._embedding_size = text, ready.embedding_size
        self._processors = Processors({}) if processors is None else processors
        self._vocab_size, self._max_model_len = ready.vocab_size, ready.options.max_model_len
        self._eos = frozenset(text.eos_token_ids)
        self._seeds = random.Random(ready.options.seed)
        self._wake = wake
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="octavo-tokenise")
        # Of Tokenize and Detokenize, whose texts have no bound: no prompt waits behind them.
        self._answerer = ThreadPoolExecutor(1, thread_name_prefix="octavo-answer")
        self._tokenised: deque[tuple[Any, Tokenised | Exception]] = deque()
        self._prompts: dict[Any, Future[None]] = {}  # of the worker thread, by key
        self._answers: deque[tuple[Any, wire.Tokens | wire.Texts]] = deque()
        self.num_pending = 0
        self._inline = 0  # characters tokenised in place in this round

    def begin_round(self) -> None:
        """A step comes before the next message."""
        self._inline = 0

    def begin(self, key: Any, message: wire.Generate, arrival: float) -> Request | None:
        """The Request, or None where the prompt went to the worker thread (see `ready`). Raises InvalidPrompt."""
        self._check(message)
        seed = self._seeds.getrandbits(63) if message.params.seed is None else message.params.seed
        words = sum(map(len, message.params.bad_words))
        if self._at_once(len(message.text or "") + chat_length(message) + words):
            return self.request(key, self._tokenise(message, seed), message, arrival)
        self.num_pending += 1
        self._prompts[key] = self._worker.submit(self._tokenise_later, key, message, seed)
        return None

    def cancel(self, key: Any) -> None:
        """Its request has ended: none of those that live is to wait until its prompt is tokenised. Idempotent."""
        prompt = self._prompts.pop(key, None)
        if prompt is not None and prompt.cancel():  # else the thread is at it, and `ready` will give it
            self.num_pending -= 1

    def _at_once(self, characters: int) -> bool:
        if self._inline + characters > _INLINE_CHARACTERS:
            return False
        self._inline += characters
        return True

    def ready(self) -> list[tuple[Any, Tokenised | Exception]]:
        """(key, what `request` takes or the error) of the prompts that the worker has tokenised since the last call."""
        done = []
        while self._tokenised:
            done.append(self._tokenised.popleft())
            self._prompts.pop(done[-1][0], None)
        self.num_pending -= len(done)
        return done

    def tokenize(
        self, client: Any, message: wire.Tokenize | wire.Detokenize, limit: int
    ) -> wire.Tokens | wire.Texts | None:
        """The answer, or None where the text went to the worker thread (see `answers`); an error where `limit` texts,
        EngineOptions.max_queued_requests, wait for it."""
        if self.num_pending >= limit:
            waiting = f"{self.num_pending} texts are waiting to be tokenised"
            return _answer_kind(message)(
                message.request_id, (), f"{waiting}; EngineOptions.max_queued_requests={limit}"
            )
        if isinstance(message, wire.Detokenize):
            long = len(message.token_ids)
        else:
            long = len(message.text) + chat_length(message)
        if self._at_once(long):
            return self._answer(message)
        self.num_pending += 1
        self._answerer.submit(self._answer_later, client, message)
        return None

    def answers(self) -> list[tuple[Any, wire.Tokens | wire.Texts]]:
        """(client, answer) of the long texts that have been tokenised since the last call."""
        done = []
        while self._answers:
            done.append(self._answers.popleft())
        self.num_pending -= len(done)
        return done

    def request(self, key: Any, tokenised: Tokenised, message: wire.Generate, arrival: float) -> Request:
        """The Request of a tokenised prompt. Raises InvalidPrompt."""
        params, task, prompt = message.params, message.task, tokenised.prompt
        if not prompt:
            raise InvalidPrompt("the prompt has no tokens; give at least one")
        search = None
        if message.beam is not None:
            params, search = self._search(message)
        scored = task.start if isinstance(task, wire.Score) else 0
        if not 0 <= scored < len(prompt):
            raise InvalidPrompt(f"scores from token {scored} of {len(prompt)}: there is none to begin behind")
        return Request(
            key=key,
            prompt=prompt,
            params=params,
            eos_token_ids=self._eos,
            seed=tokenised.seed,
            arrival=arrival,
            bad_words=tokenised.bad_words,
            search=search,
            draws=task is None,
            pooling=task.pooling if isinstance(task, wire.Embed) else "",
            prompt_scored=scored,
        )

    def _search(self, message: wire.Generate) -> tuple[SamplingParams, BeamSearch]:
        """What the sampler is told of each beam, so that the search sees the best next tokens. Raises InvalidPrompt."""
        beam = message.beam
        assert beam is not None
        ends = frozenset(beam.stop_token_ids) | (frozenset() if beam.ignore_eos else self._eos)
        top = min(max(BeamSearch.num_top(beam.beam_width, len(ends)), beam.logprobs or 0), self._vocab_size)
        if top > MAX_LOGPROBS:
            raise InvalidPrompt(
                f"beam_width={beam.beam_width} with {len(ends)} tokens that end a text looks at the {top} best tokens "
                f"of each beam; at most {MAX_LOGPROBS}: lower beam_width or give fewer stop_token_ids"
            )
        search = BeamSearch(
            beam.beam_width,
            ends=ends,
            max_tokens=beam.max_tokens or 1,  # the scheduler says how many there may be
            min_tokens=beam.min_tokens,
            length_penalty=beam.length_penalty,
            early_stopping=beam.early_stopping,
            num_kept=beam.logprobs or 0,
        )
        return SamplingParams(
            temperature=0.0, max_tokens=beam.max_tokens, logprobs=top, ignore_eos=True, priority=beam.priority
        ), search

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._answerer.shutdown(wait=False, cancel_futures=True)

    def _tokenise_later(self, key: Any, message: wire.Generate, seed: int) -> None:
        try:
            result: Tokenised | Exception = self._tokenise(message, seed)
        except Exception as error:  # whatever it is ends this request, not the thread
            result = error
        self._tokenised.append((key, result))
        self._wake()

    def _answer_later(self, client: Any, message: wire.Tokenize | wire.Detokenize) -> None:
        self._answers.append((client, self._answer(message)))
        self._wake()

    def _answer(self, message: wire.Tokenize | wire.Detokenize) -> wire.Tokens | wire.Texts:
        kind = _answer_kind(message)
        try:
            if isinstance(message, wire.Detokenize):
                return wire.Texts(message.request_id, tuple(self._texts(message)))
            if message.messages is None:
                text, special = message.text, message.special
            else:
                text, special = render_chat(self._text, message), False
            if message.render:
                return wire.Texts(message.request_id, (text,))
            return wire.Tokens(message.request_id, tuple(self._text.encode(text, special)))
        except Exception as error:  # whatever it is ends this request, not the engine
            return kind(message.request_id, (), str(error) or type(error).__name__)

    def _texts(self, message: wire.Detokenize) -> list[str]:
        if not self._text.has_tokenizer:
            raise TextError("text needs a tokenizer, and the checkpoint has none")
        if not message.each:
            return [self._text.decode(message.token_ids, message.skip_special_tokens)]
        texts = []
        for token in message.token_ids:
            # As behind other text: some tokenizers treat the first token of all differently.
            stream = self._text.stream_after_text(message.skip_special_tokens)
            texts.append(stream.feed([token]) + stream.flush())
        return texts

    def _tokenise(self, message: wire.Generate, seed: int) -> Tokenised:
        words = message.params.bad_words
        try:
            return Tokenised(self._prompt(message), self._text.encode_bad_words(words) if words else [], seed)
        except TextError as error:
            raise InvalidPrompt(str(error)) from error

    def _prompt(self, message: wire.Generate) -> list[int]:
        if message.token_ids is not None:
            return message.token_ids
        chat = message.messages is not None
        text = render_chat(self._text, message) if chat else message.text or ""
        self._check_length(text)
        return self._text.encode(text, add_special_tokens=not chat)

    def _check_length(self, text: str) -> None:
        limit = self._max_model_len
        if limit is None or len(text) <= limit * _COMMON_TOKEN:
            return
        least = -(-len(text) // max(self._text.longest_token, _COMMON_TOKEN))
        if least > limit:
            raise TextTooLong(
                f"{len(text)} characters are at least {least} tokens, more than max_model_len={limit}; shorten the "
                "prompt or raise EngineOptions.max_model_len"
            )

    def _check(self, message: wire.Generate) -> None:
        """What needs the model to be judged; everything else SamplingParams has checked itself."""
        params, vocab = message.params, self._vocab_size
        given = [f for f in ("text", "token_ids", "messages") if getattr(message, f) is not None]
        if message.beam is not None and message.beam.sampling() != params:
            raise InvalidPrompt("params: other than those of the beam search")
        if message.beam is not None and message.task is not None:
            raise InvalidPrompt("a prompt that is only read (embed, score) has no beams")
        if len(given) != 1:
            raise InvalidPrompt(f"exactly one of text, token_ids and messages is the prompt, got {given or 'none'}")
        if not self._text.has_tokenizer:
            for name, value in (
                ("a text prompt", message.text),
                ("chat messages", message.messages),
                ("stop", params.stop),
                ("bad_words", params.bad_words),
                ("structured", params.structured),
            ):
                if value:
                    raise InvalidPrompt(f"{name} needs a tokenizer, and the checkpoint has none; use token ids")
        for name, ids in (
            ("prompt token id", message.token_ids),
            ("logit_bias token id", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if ids and not (min(ids) >= 0 and max(ids) < vocab):
                wrong = next(token for token in ids if not 0 <= token < vocab)
                raise InvalidPrompt(f"{name} {wrong} is outside the vocabulary of {vocab} tokens")
        self._check_task(message)
        if params.logits_processors:
            try:
                self._processors.check(params.logits_processors)
            except ValueError as error:
                raise InvalidPrompt(str(error)) from error
        for name, top in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if top is not None and top > vocab:
                raise InvalidPrompt(f"{name}={top} is more than the vocabulary of {vocab} tokens")

    def _check_task(self, message: wire.Generate) -> None:
        task, params = message.task, message.params
        if task is None:
            return
        if params.n != 1:
            raise InvalidPrompt(f"n={params.n}: a prompt that is embedded or scored has one answer")
        if isinstance(task, wire.Score) and params.prompt_logprobs is None:
            raise InvalidPrompt("prompt_logprobs=None: scores are prompt logprobs, give a number")
        if isinstance(task, wire.Embed):
            size, wanted = self._embedding_size, task.dimensions
            if wanted is not None and not 1 <= wanted <= size:
                raise InvalidPrompt(f"dimensions={wanted}: this model's embeddings have 1 to {size}")
            if params.prompt_logprobs is not None:
                raise InvalidPrompt("prompt_logprobs: not with embeddings")
