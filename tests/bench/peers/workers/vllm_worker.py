"""vLLM on CPU: its own batch entry point with its defaults (compiled model, chunked prefill), bfloat16."""

from __future__ import annotations

import os
from typing import Any

from protocol import serve


class Vllm:
    """vllm.LLM; detokenising is left out, which is in its favour."""

    def load(self, spec: dict[str, Any]) -> None:
        # Read when vllm is imported. Without the binding its OpenMP threads sit on one core of a small machine.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{spec['threads'] - 1}"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, -(-spec["cache_bytes"] >> 30)))  # GiB
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM

        self.llm = LLM(
            model=spec["hf"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=spec["max_model_len"],
            max_num_seqs=spec["max_num_seqs"],
            enforce_eager=spec["variant"] == "eager",
        )

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return [list(done.outputs[0].token_ids) for done in self.llm.generate(asked, params, use_tqdm=False)]


if __name__ == "__main__":
    serve(Vllm())
