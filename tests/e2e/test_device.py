"""EngineOptions.device through a real engine, on machines with a GPU and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import octavo
from octavo import AsyncClient, EngineOptions, SamplingParams

GPU = torch.version.cuda is not None and torch.cuda.is_available()


@pytest.mark.anyio
@pytest.mark.skipif(GPU, reason="there is a GPU here")
async def test_a_gpu_that_is_not_there_is_refused_at_start(tiny: Path) -> None:
    with pytest.raises(octavo.EngineStartError, match=r"device='cuda:1'.*CUDA.*EngineOptions.device='cpu'"):
        async with AsyncClient(str(tiny), EngineOptions(device="cuda:1")):
            pass


@pytest.mark.anyio
@pytest.mark.skipif(GPU, reason="there is a GPU here")
async def test_auto_is_the_cpu_and_ready_says_so(tiny: Path) -> None:
    async with AsyncClient(str(tiny), EngineOptions(num_threads=1)) as client:
        assert client.options.device == "cpu"


@pytest.mark.anyio
async def test_what_only_a_gpu_stores_is_refused_on_the_cpu(tiny: Path) -> None:
    with pytest.raises((octavo.InvalidOption, octavo.EngineStartError), match="kv_cache_dtype"):
        async with AsyncClient(str(tiny), EngineOptions(device="cpu", kv_cache_dtype="fp8", num_threads=1)):
            pass


@pytest.mark.gpu
@pytest.mark.anyio
async def test_a_gpu_serves(tiny: Path) -> None:
    """Memory is measured, graphs are captured, steps overlap: greedy tokens are those of one request alone."""
    options = EngineOptions(device="cuda", max_num_seqs=4, gpu_memory_utilization=0.2)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    async with AsyncClient(str(tiny), options) as client:
        assert client.options.device == "cuda:0"
        alone = await client.generate([5, 6, 7], params)
        assert len(alone.choices[0].token_ids) == 20
        again = await client.generate([5, 6, 7], params)
        assert again.choices[0].token_ids == alone.choices[0].token_ids
