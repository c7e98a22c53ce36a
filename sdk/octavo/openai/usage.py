"""Token counts as OpenAI reports them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.results import Usage

__all__ = ["total", "usage_of"]


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def total(usages: Iterable[Usage]) -> Usage:
    """Of several prompts of one request; the times are not summed."""
    prompt = cached = completion = 0
    for usage in usages:
        prompt += usage.prompt_tokens
        cached += usage.cached_tokens
        completion += usage.completion_tokens
    return Usage(prompt, cached, completion)
