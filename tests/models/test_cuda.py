"""Whole tiny models on CUDA's ops, through the runner and the graphs that a device has, held to transformers.

Emulated on every machine (with the kernels' accesses unchecked: tests/ops checks them), and on a device where there is
one. What is emulated shows that the ops of a forward, a step and a padded step are all there and fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.models import load_model
from octavo_engine.ops import load_ops
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.quant.formats import resolve
from octavo_engine.weights import open_source
from tests.execution.driver import Driver, Sequence
from tests.models.family_oracles import answers, oracle, prompts, reference_logits, write
from tests.models.stepper import Stepper
from tests.models.test_quantization import dequantized
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
    assert 4 in graphs.replays, "the steps that decode three sequences run padded"


def driver_of(folder: Path, cuda: CudaOps, dtype: torch.dtype, **options: object) -> Driver:
    kv_dtype = options.pop("kv_dtype", dtype)
    model = load_model(open_source(folder), cuda, dtype, **options)
    return Driver(model, cuda, kv_dtype=kv_dtype, num_pages=40, max_num_seqs=4, max_model_len=64, make=DeviceRunner)


def run(folder: Path, cuda: CudaOps, asked: list[list[int]], dtype: torch.dtype, **options: object) -> list[Sequence]:
    """The prompts in chunks, mixed with the first's decode steps, then all of them together."""
    kv_dtype = options.pop("kv_dtype", dtype)
    model = load_model(open_source(folder), cuda, dtype, **options)
    driver = Driver(model, cuda, kv_dtype=kv_dtype, num_pages=40, max_num_seqs=4, max_model_len=64, make=DeviceRunner)
    params = SamplingParams(temperature=0, logprobs=1)
    sequences = [driver.start(prompt, params) for prompt in asked]
    driver.step([(sequences[0], 100), (sequences[1], 3)])
    driver.step([(sequences[0], 1), *((s, 20) for s in sequences[1:])])
    driver.finish(sequences, NEW)
    return sequences


def check(sequences: list[Sequence], model: PreTrainedModel, tolerance: float) -> None:
    """Every token is the most likely one, or as good as, and has the probability that transformers gives it."""
    check_by(sequences, lambda tokens: reference_logits(model, tokens), tolerance)


def check_by(sequences: list[Sequence], logits_of: Callable[[list[int]], Tensor], tolerance: float) -> None:
    for sequence in sequences:
        assert len(sequence.output) == NEW
        logits = logits_of(sequence.tokens)[len(sequence.prompt) - 1 : -1]
        scale = float((logits - logits.mean()).square().mean().sqrt())
        expected: Tensor = logits.log_softmax(-1)
        for token, entry, row in zip(sequence.output, sequence.logprobs, expected, strict=True):
            assert entry is not None
            assert entry.token_id == token
            assert abs(entry.logprob - float(row[token])) < tolerance * scale
            assert float(row.max() - row[token]) < tolerance * scale


def asked(name: str) -> list[list[int]]:
    """Three sequences, so that decode steps of all of them run padded."""
    return [prompt[:33] for prompt in prompts(name)[:3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_transformers(name: str, kind: str, cuda: CudaOps, checkpoint: Folder) -> None:
    dtype, kv_dtype, tolerance = KINDS[kind]
    sequences = run(checkpoint(name), cuda, asked(name), dtype, kv_dtype=kv_dtype)
    check(sequences, oracle(name), tolerance)
    if dtype == F32:
        assert [s.output for s in sequences] == [answer.tokens[:NEW] for answer in answers(name)[:3]]


@pytest.mark.parametrize("short", ["int4:g32,float,lm_head", "int4:asymmetric,float", "int8", "llm_int8"])
@pytest.mark.parametrize("name", MODELS[:2])
def test_quantised_weights(name: str, short: str, cuda: CudaOps, checkpoint: Folder, tmp_path: Path) -> None:
    sequences = run(checkpoint(name), cuda, asked(name), BF16, quantization=short)
    form = resolve(short)
    assert form is not None
    folder = dequantized(checkpoint(name), tmp_path / "floats", form)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager").eval()
    check(sequences, model, 0.2)


@pytest.mark.parametrize("cache", CACHES)
def test_eight_bit_caches(cache: str, cuda: CudaOps, checkpoint: Folder) -> None:
    kv_dtype, tolerance = CACHES[cache]
    check(run(checkpoint(MODELS[0]), cuda, asked(MODELS[0]), BF16, kv_dtype=kv_dtype), oracle(MODELS[0]), tolerance)


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


FAMILIES = [
    "aquila",
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
    "seed-oss",
    "smollm3",
    "stablelm-12b",
    "starcoder2",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str, cuda: CudaOps, tmp_path: Path) -> None:
    """Every op that a family needs beside LLaMA's, in float32."""
    check(run(write(name, tmp_path / "m"), cuda, asked(name), F32), oracle(name), 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_in_bfloat16(name: str, tmp_path: Path) -> None:
    cuda = emulated_ops(check=False, graphs=CallGraphs())
    check(run(write(name, tmp_path / "m"), cuda, asked(name), BF16), oracle(name), 0.15)


@pytest.mark.parametrize("short", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_in_fewer_bits(name: str, short: str, tmp_path: Path) -> None:
    """The same codes as on the CPU, whose own are held to the reference: what rounding 48 random columns to 4 bits does
    to a model of this size would hide anything."""
    folder, cuda, cpu = write(name, tmp_path / "m"), emulated_ops(check=False, graphs=CallGraphs()), load_ops("cpu")
    model = load_model(open_source(folder), cpu, BF16, quantization=short)

    def logits_of(tokens: list[int]) -> Tensor:
        return Stepper(model, cpu, sequences=1).prefill([tokens])[0]

    check_by(run(folder, cuda, asked(name), BF16, quantization=short), logits_of, 0.35)


@pytest.mark.parametrize(
    ("name", "short"),
    [("qwen2-moe", None), ("qwen2-moe", "int4"), ("gemma2", "int8"), ("qwen3", "int4:g32,float,lm_head")],
)
def test_kernels_of_whole_steps_may_overlap(name: str, short: str | None, tmp_path: Path) -> None:
    """Every access is looked at, from launch to launch: before a kernel waits it reads nothing of the one before it."""
    driver = driver_of(write(name, tmp_path / "m"), emulated_ops(invariant=True), BF16, quantization=short)
    sequences = [driver.start(prompt[:5], PARAMS) for prompt in prompts(name)[:2]]
    driver.finish(sequences, 3)
    assert [len(sequence.output) for sequence in sequences] == [3, 3]
