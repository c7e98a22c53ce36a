"""llama.cpp through llama-cpp-python's bindings of its C API, batching all sequences in every decode call.

The package's own Llama class serves one sequence at a time, so llama.cpp's parallel decoding is driven directly,
as its server does: prompts in chunks of n_batch, then one token of every sequence a call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from protocol import serve

_BATCH = 2048


class LlamaCpp:
    """Variants: "bf16", "q8_0" and "q4_0", which llama.cpp makes of the bfloat16 file, and "q4_1", the demo model's
    own file. A context is made for each run."""

    def load(self, spec: dict[str, Any]) -> None:
        self.threads = spec["threads"]
        llama_cpp.llama_backend_init()
        path = self._file(spec)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def _file(self, spec: dict[str, Any]) -> str:
        variant, source = spec["variant"], Path(spec["gguf"])
        if variant == "bf16":
            return str(source)
        if variant == "q4_1" and spec["gguf_q4_1"]:
            return str(spec["gguf_q4_1"])
        target = source.with_name(f"model-{variant}.gguf")
        if not target.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{variant.upper()}")
            settings.nthread = self.threads
            scratch = target.with_suffix(f".{os.getpid()}")
            failed = llama_cpp.llama_model_quantize(str(source).encode(), str(scratch).encode(), settings)
            if failed:
                raise RuntimeError(f"llama.cpp can't make {target.name} of {source}: {failed}")
            os.replace(scratch, target)
        return str(target)

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = len(prompts)
        settings.n_ctx = sum(-(-(len(prompt) + output) // 256) * 256 for prompt in prompts)
        settings.n_batch = settings.n_ubatch = min(_BATCH, settings.n_ctx)
        settings.n_threads = settings.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self.model, settings)
        if not context:
            raise RuntimeError(f"llama.cpp can't make a context of {settings.n_ctx} tokens")
        batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        try:
            return self._generate(context, batch, prompts, output)
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)

    def _generate(self, context: Any, batch: Any, prompts: list[list[int]], output: int) -> list[list[int]]:
        outputs: list[list[int]] = [[] for _ in prompts]
        todo = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        while todo:
            chunk, todo = todo[:_BATCH], todo[_BATCH:]
            for row, (token, position, sequence, wanted) in enumerate(chunk):
                batch.token[row], batch.pos[row] = token, position
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = wanted
            batch.n_tokens = len(chunk)
            status = llama_cpp.llama_decode(context, batch)
            if status:
                raise RuntimeError(f"llama_decode failed with {status} on a batch of {len(chunk)}")
            for row, (_, position, sequence, wanted) in enumerate(chunk):
                if wanted:
                    logits = llama_cpp.llama_get_logits_ith(context, row)
                    token = int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())
                    outputs[sequence].append(token)
                    if len(outputs[sequence]) < output:
                        todo.append((token, position + 1, sequence, True))
        return outputs


if __name__ == "__main__":
    serve(LlamaCpp())
