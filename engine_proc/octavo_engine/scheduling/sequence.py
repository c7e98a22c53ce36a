"""A request and its n sequences, as the scheduler sees them."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from struct import pack
from typing import Literal, Protocol

from octavo.options import SamplingParams
from octavo_engine.scheduling.beam_search import BeamSearch, Top
from octavo_engine.scheduling.plan import SeqStart
from octavo_engine.scheduling.prefix_cache import Parent

__all__ = ["BeamGroup", "FinishReason", "Guesses", "Regimes", "Request", "Sequence"]

FinishReason = Literal["stop", "length", "abort"]


class Regimes(Protocol):
    """How a model's rotation goes by the length of a sequence."""

    def choose(self, prompt: int, tokens: int) -> tuple[int, int]:
        """For a sequence of so many tokens that began with a prompt of so many: the length that its positions are
        rotated for, and how many tokens it may have before that has to be another."""
        ...


_NOWHERE = -1
_MASK = (1 << 64) - 1


@dataclass(slots=True, eq=False)
class Request:
    """A prompt (token ids in 0 .. 2^31 - 1) to be answered params.n times.

    key: whatever names the request, unique among the live ones. seed: 64-bit signed, resolved. arrival: the caller's
    clock, carried along; the order of arrival is that of the calls to Scheduler.add. bad_words: as in SeqStart.
    cache_salt: prefix-cache pages are shared only between requests with the same salt. grammar: what params.structured
    was compiled to; the runner finds it for as long as it is held here. draws: False where the prompt is only read: the
    request ends when it has been computed. pooling: what becomes of its hidden states then, "mean", "last" or "".
    adapter: as in SeqStart; its requests have a cache_salt of their own. prompt_scored: where prompt logprobs begin, 0
    but for wire.Score.
    search: the answers are found by beam search; its sequences are the beams. params.logprobs are what it looks at.
    Raises OverflowError or TypeError when the prompt holds anything but such token ids.
    """

    key: Hashable
    prompt: list[int]
    params: SamplingParams
    eos_token_ids: frozenset[int]
    seed: int
    arrival: float
    bad_words: list[list[int]] = field(default_factory=list)
    cache_salt: bytes = b""
    grammar: object = None
    draws: bool = True
    pooling: str = ""
    adapter: int = -1
    search: BeamSearch | None = None
    sequences: list[Sequence] = field(init=False)
    prompt_bytes: bytes = field(init=False, repr=False)  # int32, what the prefix cache compares
    prompt_scored: int = 0  # prompt tokens already run with prompt_logprobs asked for
    num_open: int = field(init=False)  # sequences not yet finished

    def __post_init__(self) -> None:
        self.prompt_bytes = array("i", self.prompt).tobytes()
        count = self.params.n if self.search is None else self.search.width
        self.sequences = [Sequence(self, index) for index in range(count)]
        self.num_open = count
        if self.search is not None:
            BeamGroup(self.search, self.sequences)

    @property
    def looks_back(self) -> bool:
        """A grammar or a processor sees its whole output before each token: none can be guessed ahead of it."""
        return self.params.structured is not None or bool(self.params.logits_processors)

    @property
    def wants_prompt_scored(self) -> bool:
        """Some prompt logprobs are still to be made."""
        return self.params.prompt_logprobs is not None and self.prompt_scored < len(self.prompt)


class BeamGroup:
    """The beams of a request. live: the sequences of the search's beams, in its order. tops: what it has to be told of
    those that have drawn; once it knows all of them, it goes on."""

    __slots__ = ("live", "search", "tops")

    def __init__(self, search: BeamSearch, sequences: list[Sequence]) -> None:
        self.search = search
        self.live = sequences[:1]
        self.tops: dict[Sequence, Top] = {}
        for sequence in sequences:
            sequence.group = self
            sequence.waits_until = math.inf


@dataclass(slots=True)
class Guesses:
    """How well a sequence's next tokens were guessed so far.

    rate: the probability that a guess is right whose predecessors were, as far as is known. idle: steps since guessing
    did not pay. history: the tokens as int32 bytes, as far as a proposer has looked at them. pages, num_computed: the
    page table by which a draft model has computed so many tokens since the sequence took its slot; asked: it
    was, since.
    """

    rate: float
    idle: int = 0
    history: bytearray = field(default_factory=bytearray)
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    asked: bool = False


class Sequence:
    """One choice of a request, or one beam.

    output: token ids drawn so far and committed. num_computed: tokens whose keys and values are in the cache once all
    plans handed out have run; as many as num_tokens when the next one is still to be drawn. pages: the page table.
    slot: -1 while waiting. finish_reason: "stop", "length" or "abort" once finished; stop_reason: the stop string or
    token id that ended it, None for end-of-sequence. num_cached: prompt tokens that were found in the cache when it
    first ran. regime: the length that its positions are rotated for, see layers.rope.Regimes.
    """

    __slots__ = (
        "cost",
        "finish_reason",
        "followers",
        "group",
        "guesses",
        "index",
        "leader",
        "limit",
        "max_output",
        "node",
        "num_cached",
        "num_computed",
        "output",
        "overtaken",
        "pages",
        "rank",
        "regime",
        "request",
        "room",
        "samplers",
        "sent",
        "slot",
        "started",
        "stop_reason",
        "stops",
        "waits_until",
    )

    def __init__(self, request: Request, index: int) -> None:
        params = request.params
        self.request = request
        self.index = index
        self.output: list[int] = []
        self.num_computed = 0
        self.pages: list[int] = []
        self.slot = _NOWHERE
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.num_cached = 0
        self.regime = 0
        self.stops = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self.stops |= request.eos_token_ids
        self.waits_until = self.known_from
        # What follows is the scheduler's own.
        self.rank = (params.priority, 0, index)  # smaller runs first: priority, order of arrival, choice
        self.max_output = 0  # tokens, set at admission
        self.followers: list[Sequence] = []  # choices that start when this one has computed the prompt
        self.leader: Sequence | None = None  # the one whose follower it is
        self.overtaken = 0  # later arrivals that were admitted while this one waited
        self.started = False
        self.guesses: Guesses | None = None
        self.group: BeamGroup | None = None
        self.cost = (0, 0)  # after a failed admission: pages it takes, and the step at which to look again
        self.samplers = [_NOWHERE]  # [slot]
        self.node: Parent | None = None  # entry of its last full page; None: its pages are not stored
        self.sent = 0  # entries of `pages` that the runner has
        self.room = 0  # a token at a position below this can be written as things are
        self.limit = sys.maxsize  # so many tokens it may have in its regime

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def known_from(self) -> float:
        """The length of output from which on a token can be drawn before the one before it is known to the host."""
        return _waits_until(self.request, self.stops)

    @property
    def cache_root(self) -> bytes:
        """The prefix cache's parent of its first page: pages are shared within a cache_salt and a regime."""
        return b"%d:%b" % (self.regime, self.request.cache_salt)

    def choose_regime(self, regimes: Regimes | None) -> None:
        """By its length as it is now. It holds no pages."""
        if regimes is not None:
            self.regime, self.limit = regimes.choose(len(self.request.prompt), self.num_tokens)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start .. stop - 1 of prompt and output."""
        prompt = self.request.prompt
        split = len(prompt)
        if stop <= split:
            return prompt[start:stop]
        if start >= split:
            return self.output[start - split : stop - split]
        return prompt[start:] + self.output[: stop - split]

    def token_bytes(self, start: int, stop: int) -> bytes:
        """The same as int32 bytes."""
        split = len(self.request.prompt)
        if stop <= split:
            return self.request.prompt_bytes[4 * start : 4 * stop]
        tokens = self.output[start - split : stop - split] if start >= split else self.tokens(start, stop)
        return pack(f"{len(tokens)}i", *tokens)  # a third of the time of an array's

    def ended_by(self, token: int) -> tuple[FinishReason, int | None] | None:
        """finish_reason and stop_reason if `token`, just appended, is the last. A structured output ends before
        min_tokens where nothing else can follow; an end that could be put off is not drawn then."""
        params, drawn = self.request.params, len(self.output)
        if token in self.stops and (drawn >= params.min_tokens or params.structured is not None):
            is_eos = token in self.request.eos_token_ids and not params.ignore_eos
            return "stop", None if is_eos else token
        return ("length", None) if drawn >= self.max_output else None

    def begin(self, slot: int) -> SeqStart:
        """Take a slot."""
        self.leader = None
        self.slot = slot
        self.samplers = [slot]
        self.started = True
        return self.start()

    def start(self) -> SeqStart:
        """What the runner is told of who has the slot."""
        request = self.request
        return SeqStart(
            self.slot,
            request.params,
            _stream(request.seed, self.index),
            request.prompt,
            self.output.copy(),
            sorted(self.stops),
            request.bad_words,
            request.adapter,
        )


def _waits_until(request: Request, stops: frozenset[int]) -> float:
    """Until then the logits are changed by what was drawn: by penalties, processors, words not to be completed and by a
    grammar, always; by ends not to be drawn, while the output is shorter than min_tokens.
    """
    params = request.params
    if request.looks_back:
        return math.inf
    penalties = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    if penalties or any(len(word) > 1 for word in request.bad_words):
        return math.inf
    return params.min_tokens if stops else 0


def _stream(seed: int, index: int) -> int:
    """The seed of choice `index`, signed 64-bit; choice 0 draws as a request with n = 1 would.

    The mixing function is SplitMix64's (Steele, Lea, Flood, OOPSLA 2014).
    """
    if index:
        z = (seed + index * 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        seed = z ^ (z >> 31)
    seed &= _MASK
    return seed - (1 << 64) if seed >> 63 else seed
