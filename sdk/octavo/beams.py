"""BeamParams: how a request is decoded by beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.checks import flag, number, whole
from octavo.errors import InvalidOption
from octavo.options import SamplingParams

__all__ = ["BeamParams"]


class BeamParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Beam search in place of sampling: the likeliest continuations found by keeping the `beam_width` best at a time.

    The answer is that of transformers' generate(num_beams=beam_width, num_return_sequences=n, ...), best choice first.
    beam_width: 1 .. 128, at most EngineOptions.max_num_seqs for all beams to run at once (more take turns).
    n: choices returned, at most beam_width. max_tokens None: up to the context's end.
    length_penalty: a finished text's score is the sum of its logprobs / (its tokens ** length_penalty): above 0 favours
    long texts, below 0 short ones.
    early_stopping: when the search ends. True: with beam_width finished texts; False: when the best running beam, were
    it to end now, is no better than the worst of those; "never": when at no length that max_tokens allows it would be.
    logprobs k: each token's log probability and the k best. The other fields are those of SamplingParams.
    """

    beam_width: int = 4
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    queue_timeout: float | None = None
    total_timeout: float | None = None

    def __post_init__(self) -> None:
        whole("beam_width", self.beam_width, 1, 128)
        whole("n", self.n, 1)
        if self.n > self.beam_width:
            raise InvalidOption("n", self.n, f"at most beam_width={self.beam_width}")
        number("length_penalty", self.length_penalty, -16.0, 16.0)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InvalidOption("early_stopping", self.early_stopping, "True, False or 'never'")
        flag("ignore_eos", self.ignore_eos)
        if self.logprobs is not None:
            whole("logprobs", self.logprobs, 0, 128)
        msgspec.structs.force_setattr(self, "stop_token_ids", self.sampling().stop_token_ids)

    def sampling(self) -> SamplingParams:
        """The fields that both have, in a SamplingParams. Raises InvalidOption."""
        names = set(SamplingParams.__struct_fields__) & set(self.__struct_fields__)
        shared: dict[str, Any] = {name: getattr(self, name) for name in names}
        return SamplingParams(temperature=0.0, **shared)
