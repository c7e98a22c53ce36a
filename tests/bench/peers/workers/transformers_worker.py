"""Hugging Face transformers: one padded batch (the prompts are of one length), torch's own threads."""

from __future__ import annotations

from typing import Any

import torch
from protocol import serve
from transformers import AutoModelForCausalLM


class Transformers:
    """AutoModelForCausalLM.generate in bfloat16 with SDPA attention."""

    def load(self, spec: dict[str, Any]) -> None:
        torch.set_num_threads(spec["threads"])
        self.model = AutoModelForCausalLM.from_pretrained(spec["hf"], dtype=torch.bfloat16)
        self.model.eval()
        self.model.generation_config.eos_token_id = None

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            made = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=output,
                max_new_tokens=output,
                pad_token_id=0,
            )
        tokens: list[list[int]] = made[:, ids.shape[1] :].tolist()
        return tokens


if __name__ == "__main__":
    serve(Transformers())
