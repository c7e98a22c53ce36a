"""Every family and variant: a name -> how its tiny checkpoint is made, published and answered.

A row is the transformers config that makes and answers the checkpoint. Where the published checkpoints have other keys
or names than transformers saves, `publish` turns the one into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

__all__ = ["LENGTHS", "NEW_TOKENS", "VOCAB", "Family", "of"]

VOCAB = 103
LENGTHS = (1, 7, 33, 130)
NEW_TOKENS = 20

Tensors = dict[str, Tensor]
Publish = Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]
"""publish(config.json's keys, tensors) as transformers saves them -> as they are published."""


@dataclass(frozen=True)
class Family:
    """config: of transformers' model that makes and answers the checkpoint; a dict where it is mpt_equations' instead.
    like: the row whose oracle and prompts it shares, being the same model as published by another. lengths of prompts;
    max_model_len: what is served, where that is more than the config says. unseen: tensors of the oracle that
    no logits depend on; ignored: those of the file that nothing reads; both by regex.
    """

    config: Callable[[], PreTrainedConfig | dict[str, Any]]
    publish: Publish | None = None
    like: str = ""
    lengths: tuple[int, ...] = LENGTHS
    max_model_len: int | None = None
    unseen: str = "never"
    ignored: str = "never"
    attention: str = "eager"


def of(config: type[PreTrainedConfig], *values: dict[str, Any], **more: Any) -> Callable[[], PreTrainedConfig]:
    merged: dict[str, Any] = {}
    for each in values:
        merged |= each
    return lambda: config(**(merged | more))
