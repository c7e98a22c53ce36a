"""OpenVINO GenAI: continuous batching over a paged cache; weights as bfloat16, int8 or int4."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from protocol import serve

# int4 in groups that divide the model's width: 64 for SmolLM2's 576, else the exporter's default of 128.
_WEIGHTS = {
    "bf16": ("--weight-format", "fp16"),
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--ratio", "1.0"),
}


class OpenVino:
    """ContinuousBatchingPipeline on the CPU device, which computes in bfloat16 where the hardware does."""

    def load(self, spec: dict[str, Any]) -> None:
        import openvino_genai

        folder = _export(spec["hf"], spec["variant"], spec["int4_group"])
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = max(1, -(-spec["cache_bytes"] >> 30))  # GiB
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = spec["max_num_seqs"]
        settings = {"INFERENCE_NUM_THREADS": spec["threads"], "INFERENCE_PRECISION_HINT": "bf16"}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output
        config.min_new_tokens = output
        config.ignore_eos = True
        config.do_sample = False
        asked = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        done = self.pipeline.generate(asked, [config] * len(asked))
        return [list(result.m_generation_ids[0]) for result in done]


def _export(hf: str, variant: str, group: int) -> str:
    """The checkpoint in OpenVINO's format, beside the original."""
    target = Path(f"{hf}-openvino-{variant}")
    if not (target / "openvino_model.xml").exists():
        tool = Path(sys.executable).with_name("optimum-cli")
        command = [str(tool), "export", "openvino", "--model", hf, "--task", "text-generation-with-past"]
        weights = _WEIGHTS[variant] + (("--group-size", str(group)) if variant == "int4" else ())
        subprocess.run([*command, *weights, str(target)], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return str(target)


if __name__ == "__main__":
    serve(OpenVino())
