"""transformers' generate and generate_batch on the engine's work: `python -m tests.bench.gpu.transformers_peer`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.report import write
from tests.bench.models import MODELS, config_folder
from tests.bench.workload import Case, prompts

__all__ = ["peer"]

MODEL = "llama-8b"
CASES = [Case(1, 128, 128), Case(256, 128, 128)]


def peer(model: str, cases: list[Case], device: str) -> Iterator[dict[str, Any]]:
    """A dict a case and way: tokens/s of the second of two runs. What a version lacks is named."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(config_folder(model))
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    vocab = MODELS[model].vocab

    def generate(case: Case, seed: str) -> None:
        ids = torch.tensor(prompts(case, vocab, seed), device=device)
        out = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=case.output,
                min_new_tokens=case.output,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            ),
        )
        assert out.shape == (case.streams, case.prompt + case.output), out.shape

    def generate_batch(case: Case, seed: str) -> None:
        made = network.generate_batch(
            inputs=prompts(case, vocab, seed),
            generation_config=GenerationConfig(
                max_new_tokens=case.output, do_sample=False, eos_token_id=vocab, pad_token_id=0
            ),
            progress_bar=False,
        )
        tokens = sum(len(each.generated_tokens) for each in made.values())
        assert tokens == case.counted, f"{tokens} tokens came, {case.counted} were asked for"

    ways: dict[str, Callable[[Case, str], None]] = {"generate": generate, "generate_batch": generate_batch}
    for case in cases:
        for name, run in ways.items():
            named = {"bench": "engine", "model": model, "by": f"transformers {name}", "streams": case.streams}
            try:
                run(case, "warm-up")
                began = time.perf_counter()
                run(case, "measured")
                yield {**named, "tokens_per_second": case.counted / (time.perf_counter() - began)}
            except Exception as error:  # a peer that can't: the run goes on without it
                yield {**named, "why_missing": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="append figures to this file, one JSON object a line")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit(f"octavo: no CUDA device here (torch {torch.__version__})")
    write(peer(MODEL, CASES, "cuda"), out)


if __name__ == "__main__":
    main()
