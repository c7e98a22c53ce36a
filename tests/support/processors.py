"""Logits processors that tests name by import path; they run in the engine's process."""

from __future__ import annotations

from typing import Any


class Only:
    """Draws from args["token_ids"] alone; breaks at output position args["breaks"], for the rows that ask for it."""

    def check(self, args: Any) -> None:
        if not isinstance(args.get("token_ids"), list):
            raise ValueError("token_ids: a list is needed")

    def __call__(self, logits: Any, rows: Any) -> None:
        for logit, row in zip(logits, rows, strict=True):
            if row.args.get("breaks") == len(row.output_token_ids):
                raise RuntimeError("as asked")
            allowed = logit[row.args["token_ids"]].clone()
            logit.fill_(float("-inf"))
            logit[row.args["token_ids"]] = allowed


def only(context: Any) -> Only:
    return Only()


def count_up(context: Any) -> Any:
    """Draws the last token + 1, modulo the vocabulary."""

    def process(logits: Any, rows: Any) -> Any:
        made = logits.new_full(logits.shape, float("-inf"))
        for logit, row in zip(made, rows, strict=True):
            last = [*row.prompt_token_ids, *row.output_token_ids][-1]
            logit[(last + 1) % context.vocab_size] = 0.0
        return made

    return process


def halved(context: Any) -> Any:
    return lambda logits, rows: logits[:, ::2]


def nothing(context: Any) -> None:
    return None


def raising(context: Any) -> None:
    raise KeyError("at the start")
