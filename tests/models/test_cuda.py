"""Whole tiny models on CUDA's ops, through the runner and the graphs that a device has, held to transformers.

Emulated on every machine (with the kernels' accesses unchecked: tests/ops checks them), and on a device where there is
one. What is emulated shows that the ops of a forward, a step and a padded step are all there and fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.models import load_model
from octavo_engine.ops import load_ops
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.quant.formats import resolve
from octavo_engine.weights import open_source
from tests.execution.driver import Driver, Sequence
from tests.models.family_oracles import FAMILIES, choices, prompts, reference_logits, step_logits
from tests.models.stepper import Stepper
from tests.models.test_quantization import dequantized_folder
from tests.support.call_graphs import CallGraphs
from tests.support.cuda import emulated_ops

Folder = Callable[[str], Path]

NEW = 4
F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
# How far a log-probability may be off, in units of the logits' root mean square.
KINDS = {"float32": (F32, F32, 1e-4), "bfloat16": (BF16, BF16, 0.1), "float16": (F16, F16, 0.02)}
CACHES = {"int8": (INT8, 0.1), "fp8": (FP8, 0.35)}
MODELS = ["llama-head-64", "gpt2", "opt"]
PARAMS = SamplingParams(temperature=0, logprobs=1)


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def invariant(request: pytest.FixtureRequest) -> CudaOps:
    """As EngineOptions.batch_invariant has it."""
    if request.param == "device":
        return CudaOps(invariant=True)
    return emulated_ops(check=False, invariant=True, graphs=CallGraphs())


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[CudaOps]:
    if request.param == "device":
        yield CudaOps()
        return
    graphs = CallGraphs()
    yield emulated_ops(check=False, graphs=graphs)
    if "dynamic-beyond" not in request.node.name:  # whose steps begin anew with every token
        assert 4 in graphs.replays, "the steps that decode three sequences run padded"


def driver_of(folder: Path, cuda: CudaOps, dtype: torch.dtype, **options: object) -> Driver:
    kv_dtype = options.pop("kv_dtype", dtype)
    model = load_model(open_source(folder), cuda, dtype, **options)
    return Driver(model, cuda, kv_dtype=kv_dtype, num_pages=40, max_num_seqs=4, max_model_len=64, make=DeviceRunner)


def run(folder: Path, cuda: CudaOps, asked: list[list[int]], dtype: torch.dtype, **options: object) -> list[Sequence]:
    """The prompts in chunks, mixed with the first's decode steps, then all of them together."""
    driver = driver_of(folder, cuda, dtype, **options)
    sequences = [driver.start(prompt, PARAMS) for prompt in asked]
    driver.step([(sequences[0], 100), (sequences[1], 3)])
    driver.step([(sequences[0], 1), *((s, 20) for s in sequences[1:])])
    driver.finish(sequences, NEW)
    return sequences


def check(sequences: list[Sequence], name: str, tolerance: float) -> None:
    """Against the family's oracle."""
    check_by(sequences, lambda s: step_logits(name, s.prompt, s.output), tolerance)


def check_by(sequences: list[Sequence], logits_of: Callable[[Sequence], Tensor], tolerance: float) -> None:
    """Every token is the most likely one, or as good as, and has the probability that `logits_of` gives it.

    logits_of: behind the prompt and each token but the last.
    """
    for sequence in sequences:
        assert len(sequence.output) == NEW
        logits = logits_of(sequence)
        scale = float((logits - logits.mean()).square().mean().sqrt())
        expected: Tensor = logits.log_softmax(-1)
        for token, entry, row in zip(sequence.output, sequence.logprobs, expected, strict=True):
            assert entry is not None
            assert entry.token_id == token
            assert abs(entry.logprob - float(row[token])) < tolerance * scale
            assert float(row.max() - row[token]) < tolerance * scale


def behind_the_prompt(model: Any, sequence: Sequence) -> Tensor:
    """What `check_by` takes, of a model of transformers."""
    return reference_logits(model, sequence.tokens)[len(sequence.prompt) - 1 : -1]


def asked(name: str) -> list[list[int]]:
    """Three sequences, so that decode steps of all of them run padded; the last is longer than windows of 24 and
    original lengths of 32."""
    return [prompt for prompt in prompts(name) if len(prompt) in (1, 7, 33)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_transformers(name: str, kind: str, cuda: CudaOps, checkpoint: Folder) -> None:
    dtype, kv_dtype, tolerance = KINDS[kind]
    sequences = run(checkpoint(name), cuda, asked(name), dtype, kv_dtype=kv_dtype)
    check(sequences, name, tolerance)
    if dtype == F32:
        assert [s.output for s in sequences] == [choices(name, s.prompt, s.output) for s in sequences]


@pytest.mark.parametrize("short", ["int4:g32,float,lm_head", "int4:asymmetric,float", "int8", "llm_int8"])
@pytest.mark.parametrize("name", MODELS[:2])
def test_quantised_weights(name: str, short: str, cuda: CudaOps, checkpoint: Folder, tmp_path: Path) -> None:
    sequences = run(checkpoint(name), cuda, asked(name), BF16, quantization=short)
    form = resolve(short)
    assert form is not None
    folder = dequantized_folder(checkpoint(name), tmp_path / "floats", form)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager").eval()
    check_by(sequences, partial(behind_the_prompt, model), 0.2)


@pytest.mark.parametrize("cache", CACHES)
def test_eight_bit_caches(cache: str, cuda: CudaOps, checkpoint: Folder) -> None:
    kv_dtype, tolerance = CACHES[cache]
    check(run(checkpoint(MODELS[0]), cuda, asked(MODELS[0]), BF16, kv_dtype=kv_dtype), MODELS[0], tolerance)


@pytest.mark.parametrize("short", [None, "int4:g32,float,lm_head", "int8"])
def test_a_sequence_has_the_same_bits_alone_and_among_others(
    short: str | None, invariant: CudaOps, checkpoint: Folder
) -> None:
    """Law 6: whole and in chunks, in graphs of other sizes, beside prefill or not."""
    folder, prompts = checkpoint(MODELS[0]), asked(MODELS[0])
    together = run(folder, invariant, prompts, BF16, quantization=short)
    driver = driver_of(folder, invariant, BF16, quantization=short)
    for prompt, other in zip(prompts, together, strict=True):
        alone = driver.start(prompt, PARAMS)
        driver.finish([alone], NEW)
        driver.stop(alone)
        assert (alone.output, alone.logprobs) == (other.output, other.logprobs)


# At least one of every family in the registry (test_registry).
IN_FEWER_BITS = [
    "aquila",
    "baichuan-7b",
    "bigcode-multi-head",
    "bigcode-tanh",
    "bloom",
    "cohere-plus",
    "cohere2",
    "ernie",
    "exaone4",
    "falcon-11b",
    "falcon-40b",
    "falcon-7b",
    "falcon-rw-rounded",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-with-images",
    "glm",
    "glm4",
    "gpt2-by-layer",
    "gptj",
    "granite",
    "internlm",
    "internlm2",
    "internlm3",
    "llama-llama3",
    "minicpm",
    "mistral",
    "mistral3",
    "mixtral",
    "mpt-six-heads-clipped",
    "neox-parallel",
    "neox-sequential",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt-350m",
    "opt-galactica",
    "phi",
    "phi-qk-norm",
    "phi3-long",
    "phi3-window",
    "qwen2-moe",
    "qwen2-moe-some-dense",
    "qwen2-window",
    "qwen3",
    "qwen3-moe",
    "santacoder",
    "seed-oss",
    "smollm3",
    "stablelm-12b",
    "starcoder2",
]
EVERY = [name for name, family in FAMILIES.items() if not family.like or name in IN_FEWER_BITS]


@pytest.mark.parametrize("name", EVERY)
def test_every_family(name: str, cuda: CudaOps, checkpoint: Folder) -> None:
    """Every op that a family or variant needs, in float32."""
    length = FAMILIES[name].max_model_len
    check(run(checkpoint(name), cuda, asked(name), F32, max_model_len=length), name, 1e-4)


@pytest.mark.parametrize("name", IN_FEWER_BITS)
def test_families_in_bfloat16(name: str, checkpoint: Folder) -> None:
    cuda = emulated_ops(check=False, graphs=CallGraphs())
    check(run(checkpoint(name), cuda, asked(name), BF16), name, 0.15)


# A family meets both in the same way, and tests/ops has the products of every kind: here one of each way to publish
# q, k and v, mixtures, and heads that int4 too keeps in 8 bits.
IN_INT8 = ["cohere-plus", "falcon-7b", "gemma2", "gpt2-by-layer", "mixtral", "phi3-long", "qwen2-moe", "santacoder"]


@pytest.mark.parametrize(
    ("name", "short"), [*((name, "int4") for name in IN_FEWER_BITS), *((name, "int8") for name in IN_INT8)]
)
def test_families_in_fewer_bits(name: str, short: str, checkpoint: Folder) -> None:
    check_fewer_bits(checkpoint(name), asked(name), short)


def check_fewer_bits(folder: Path, asked: list[list[int]], short: str) -> None:
    """The same codes as on the CPU, whose own are held to the floats that they stand for (test_rounded_families)."""
    cuda, cpu = emulated_ops(check=False, graphs=CallGraphs()), load_ops("cpu")
    model = load_model(open_source(folder), cpu, BF16, quantization=short)

    def logits_of(sequence: Sequence) -> Tensor:
        return Stepper(model, cpu, sequences=1).prefill([sequence.tokens])[0][len(sequence.prompt) - 1 : -1]

    check_by(run(folder, cuda, asked, BF16, quantization=short), logits_of, 0.35)


@pytest.mark.parametrize(
    ("name", "short"),
    [("qwen2-moe", None), ("qwen2-moe", "int4"), ("gemma2", "int8"), ("qwen3", "int4:g32,float,lm_head")],
)
def test_kernels_of_whole_steps_may_overlap(name: str, short: str | None, checkpoint: Folder) -> None:
    """Every access is looked at, from launch to launch: before a kernel waits it reads nothing of the one before it."""
    driver = driver_of(checkpoint(name), emulated_ops(invariant=True), BF16, quantization=short)
    sequences = [driver.start(prompt[:5], PARAMS) for prompt in prompts(name)[:2]]
    driver.finish(sequences, 3)
    assert [len(sequence.output) for sequence in sequences] == [3, 3]
