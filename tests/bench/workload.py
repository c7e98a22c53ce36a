"""The work that is measured, the same for octavo alone and for its peers."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Case", "cases", "prompts"]


@dataclass(frozen=True)
class Case:
    """`streams` requests at once, each `prompt` tokens in and `output` tokens out."""

    streams: int
    prompt: int
    output: int

    @property
    def is_prefill(self) -> bool:
        return self.output == 1

    @property
    def name(self) -> str:
        if self.is_prefill:
            return f"prefill of {self.prompt}"
        return f"{self.streams} stream{'s' if self.streams > 1 else ''}"

    @property
    def counted(self) -> int:
        """Tokens whose rate the case reports: prompt tokens of a prefill, else output tokens."""
        return self.streams * (self.prompt if self.is_prefill else self.output)


def cases(streams: list[int], prompt: int, output: int, prefill: int) -> list[Case]:
    """One case a number of streams, and the prefill of one long prompt (0: none)."""
    made = [Case(count, prompt, output) for count in streams]
    return [*made, Case(1, prefill, 1)] if prefill else made


def prompts(case: Case, vocab: int, seed: str) -> list[list[int]]:
    """Random token ids, different for every stream and seed, so that no prefix cache can help.

    Ids below 100 are left out: special tokens lie there.
    """
    draw = random.Random(f"{seed}/{case}")
    return [[draw.randrange(100, vocab) for _ in range(case.prompt)] for _ in range(case.streams)]
