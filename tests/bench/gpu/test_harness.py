"""The GPU benchmarks' own code, on emulated kernels and a CPU engine: what they call exists, what they count is right.

No time is measured here; a stopwatch that calls everything once stands for the device's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_engine.ops import load_ops
from tests.bench.gpu import attention, lora, quantized, timing
from tests.bench.gpu.engine import engine
from tests.bench.gpu.peers import Peers
from tests.bench.gpu.probes import Machine, probe
from tests.bench.gpu.report import line, write
from tests.bench.gpu.timing import Measured, rotations
from tests.bench.weights import weights
from tests.bench.workload import Case
from tests.support import stand_in
from tests.support.cuda import emulated_ops

MACHINE = Machine(copy=1e9, gemm=1e12)


def once(calls: Sequence[Callable[[], object]]) -> Measured:
    """Every call of them, of which the first two must not share their buffers' answers."""
    for call in calls[:3]:
        call()
    return Measured(2e-3, graph=False)


def by(found: list[dict[str, Any]]) -> set[str]:
    return {figure["by"] for figure in found if "by" in figure}


def test_buffers_are_rotated_until_no_cache_holds_them() -> None:
    assert rotations(29 << 20) == 10
    assert rotations(1 << 30) == 1
    assert rotations(10) == 64
    assert timing.stay_in_cache(1 << 20, 64)
    assert not timing.stay_in_cache(29 << 20, rotations(29 << 20))


def test_a_replay_is_of_several_calls() -> None:
    """What a graph's launch takes is shared by them."""
    runs: list[int] = []
    with stand_in.device():
        measured = timing.DeviceClock()([lambda: runs.append(0), lambda: runs.append(1), lambda: runs.append(2)])
    assert measured == Measured(1e-3 / 6, graph=True)
    assert runs == [0, 1, *[0, 1, 2] * 2]


def test_probes_count_what_they_move() -> None:
    machine = probe(once, torch.device("cpu"), scale=2**-7)
    assert machine.copy == pytest.approx(2 * (1 << 23) / 2e-3)
    assert machine.gemm == pytest.approx(2 * 64**3 / 2e-3)
    assert Machine(copy=10.0, gemm=4.0).floor(nbytes=30.0, flops=8.0) == 3.0


def test_attention() -> None:
    shapes = [attention.Shape("GQA-2", 4, 2, sequences=3, length=20, head_dim=64)]
    assert shapes[0].nbytes == 2 * 3 * 20 * 2 * 64 * 2
    peers = Peers()
    with torch.inference_mode():
        found = list(attention.attention(emulated_ops(check=False), once, MACHINE, shapes, peers))
    assert by(found) | set(peers.missing) == {"octavo", "torch SDPA", "FlashInfer"}
    assert {"octavo", "torch SDPA"} <= by(found)
    ours = next(figure for figure in found if figure["by"] == "octavo")
    assert ours["share"] == pytest.approx(shapes[0].nbytes / 1e9 / 2e-3)


def test_attention_leaves_out_what_does_not_fit() -> None:
    shape = attention.Shape("MHA", 32, 32, sequences=256, length=32768)
    (figure,) = attention.attention(emulated_ops(check=False), once, MACHINE, [shape], Peers())
    assert figure["left_out"] == "128 GiB of keys and values"
    small = attention.Shape("MHA", 32, 32, sequences=64, length=4096)
    with stand_in.device(total=4 << 30):
        (figure,) = attention.attention(load_ops("cuda"), once, MACHINE, [small], Peers())
    assert figure["left_out"] == "4 GiB of keys and values"


def test_attention_computes_what_its_peer_does() -> None:
    """On the same memory: pages in order are what SDPA takes for contiguous, with one head."""
    shape = attention.Shape("one head", 1, 1, sequences=2, length=48, head_dim=64)
    work = attention._Work(emulated_ops(check=False), shape, 1)
    work.table.copy_(torch.arange(6, dtype=torch.int32).view(2, 3))
    ours, theirs = work.octavo()[0](), work.sdpa()[0]()
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs.flatten(1), atol=2e-2, rtol=2e-2)


def test_quantised() -> None:
    products = [quantized.Product("tiny", 64, 256, rows) for rows in (1, 3)]
    peers = Peers()
    with torch.inference_mode():
        found = list(quantized.quantized(emulated_ops(check=False), once, MACHINE, products, peers))
    assert by(found) == {"octavo", "bfloat16"}
    assert set(peers.missing) == {"torch int4", "Humming"}
    ours = next(figure for figure in found if figure.get("by") == "octavo")
    assert ours["gbytes_per_second"] == pytest.approx((64 * 256 * 4.125 / 8 + 2 * (64 + 256)) / 2e-3 / 1e9)
    assert [figure["times"] for figure in found if "times" in figure] == [1.0, 1.0]


def test_adapters() -> None:
    shapes = [lora.Added("tiny", (48, 16), 96, rank=16, adapters=2, rows=rows) for rows in (2, 5)]
    assert shapes[0].nbytes == 2 * 2 * 16 * (2 * 96 + 64) + 2 * (2 * 96 + 8 * 64)
    with torch.inference_mode():
        found = list(lora.lora(emulated_ops(check=False), once, MACHINE, shapes))
    assert [figure["by"] for figure in found] == ["octavo", "torch"] * 2
    assert found[0]["share"] == pytest.approx(shapes[0].nbytes / 1e9 / 2e-3)


def test_every_call_of_ours_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock that a GPU has: nothing waits, nothing is copied from the host, and a replay does the work again."""
    monkeypatch.setattr(timing, "_L2_BYTES", 1 << 14)
    monkeypatch.setattr(timing, "_MOST_REPLAYS", 3)
    clock, peers, product = timing.DeviceClock(), Peers(), quantized.Product("tiny", 64, 256, 3)
    with stand_in.device(), torch.inference_mode():
        ops = load_ops("cuda")
        found = [probe(clock, ops.device, scale=2**-12).copy]
        shape = attention.Shape("GQA-2", 4, 2, sequences=3, length=20, head_dim=64)
        figures = [
            *attention.attention(ops, clock, MACHINE, [shape], peers),
            *quantized.quantized(ops, clock, MACHINE, [product], peers),
            *lora.lora(ops, clock, MACHINE, [lora.Added("tiny", (48, 16), 96, rank=16, adapters=2, rows=3)]),
        ]
    assert found[0] > 0
    assert [f["by"] for f in figures if f.get("graph")] == [
        "octavo",
        "torch SDPA",
        "octavo",
        "bfloat16",
        "octavo",
        "torch",
    ]
    assert all(f["graph"] for f in figures if "by" in f)


def test_the_engine_runs_on_random_weights() -> None:
    async def collect() -> list[dict[str, Any]]:
        cases = [Case(1, 16, 12), Case(3, 16, 12)]
        return [f async for f in engine(weights("bf16", "costless"), cases, MACHINE, model="costless", device="cpu")]

    ready, one, three = asyncio.run(collect())
    assert ready["ready_seconds"] > 0
    assert (one["streams"], three["streams"]) == (1, 3)
    assert one["tokens_per_second"] > 0
    assert one["floor_is"] == "bandwidth"


def test_figures_are_kept_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.jsonl"
    write([{"bench": "W4A16", "rows": 1, "share": 0.71234, "microseconds": 12345.6}], out)
    write([{"bench": "probe", "copy": 3e12}], out)
    assert [json.loads(text)["bench"] for text in out.read_text().splitlines()] == ["W4A16", "probe"]
    assert capsys.readouterr().out.splitlines()[0] == "W4A16: rows=1  share=0.712  microseconds=12346"
    assert line({"bench": "probe", "copy": None}) == "probe: copy=None"
