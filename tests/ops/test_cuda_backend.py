"""CudaOps but for its kernels: what it says where it can't run, its cache, and the weights of files."""

from __future__ import annotations

import re
import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo_engine.ops import Activations, KVLayout, Ops, OpsUnavailable, PackedLinear, QuantizedLinear, load_ops
from octavo_engine.ops.cuda import CudaOps, _check_driver, _find_device, load_library
from octavo_engine.ops.host_layout import from_host, host_ops, to_host
from tests.ops import caches
from tests.support.cuda import OnDevice
from tests.support.simt import load_emulated

BF16, F16, F32, INT8, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(
        OpsUnavailable, match=r"liboctavo_cuda\.so is missing.*CUDA toolkit.*cmake --build.*device='cpu'"
    ):
        load_library(tmp_path / "liboctavo_cuda.so")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_device_says_what_was_found() -> None:
    with pytest.raises(OpsUnavailable, match=r"device='cuda:1': (torch .* without CUDA|0 CUDA devices).*device='cpu'"):
        load_ops("cuda:1")


def pretend(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int], init: str = "") -> None:
    """torch is built with CUDA 12.8 and has devices of these compute capabilities; init: what CUDA says of itself."""

    def initialise() -> None:
        raise RuntimeError(init)

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "init", initialise)


def test_an_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by ..."
    pretend(monkeypatch, init=said)
    with pytest.raises(
        OpsUnavailable, match=r"0 CUDA devices.*too old \(found version 11040\) \(torch .*, CUDA 12\.8\)"
    ):
        load_ops("cuda")


def test_a_device_too_old_for_the_kernels_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 5), (8, 9))
    with pytest.raises(OpsUnavailable, match=r"'cuda:0': GPU 0 has compute capability 7\.5; the kernels need 8\.0"):
        load_ops("cuda:0")
    pretend(monkeypatch, (7, 5), (6, 1))
    with pytest.raises(OpsUnavailable, match=r"'cuda': GPU 0 has .* 7\.5, GPU 1 has .* 6\.1; the kernels need 8\.0"):
        load_ops("cuda")
    with pytest.raises(OpsUnavailable, match=r"'cuda:2': 2 CUDA devices were found"):
        load_ops("cuda:2")


@pytest.mark.parametrize(("asked", "index"), [("cuda", 1), ("cuda:1", 1), ("cuda:2", 2)])
def test_without_a_number_the_first_device_that_can_is_taken(
    monkeypatch: pytest.MonkeyPatch, asked: str, index: int
) -> None:
    pretend(monkeypatch, (7, 5), (8, 9), (9, 0))
    assert _find_device(asked) == (torch.device("cuda", index), {1: "sm_89", 2: "sm_90"}[index])


def test_a_library_that_the_driver_cannot_run_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CUDA runtime is its own: torch of CUDA 12.8 may run where that of 13.0 does not."""
    pretend(monkeypatch, (8, 9))
    mistake = "it is built with CUDA 13.0, the driver is of CUDA 12.4: cudaErrorInsufficientDriver, ..."
    with pytest.raises(OpsUnavailable, match=r"can't use cuda:0: .*13\.0, .*12\.4: cudaErrorInsuff.*device='cpu'"):
        _check_driver(SimpleNamespace(device_mistake=lambda: mistake), torch.device("cuda", 0))
    _check_driver(load_emulated("octavo_cuda_emulated"), torch.device("cuda", 0))


@pytest.mark.skipif(shutil.which("nvcc") is None or torch.cuda.is_available(), reason="for machines that build, only")
def test_the_real_library_says_that_there_is_no_driver() -> None:
    assert re.search(r"driver is of CUDA 0\.0: cudaError(InsufficientDriver|NoDevice)", load_library().device_mistake())


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(OpsUnavailable, match=r"'tpu'; known: 'cpu', 'cuda', 'cuda:N', 'reference'"):
        load_ops("tpu")


def test_every_op_is_answered_with_the_same_parameters() -> None:
    for name, declared in vars(Ops).items():
        if name.startswith("_") or not callable(declared):
            continue
        answered = getattr(CudaOps, name, None)
        assert answered is not None, f"CudaOps has no {name}"
        assert list(signature(answered).parameters) == list(signature(declared).parameters), name


def test_activations_have_the_type_of_the_weights(cuda_ops: Ops) -> None:
    assert [cuda_ops.activation_dtype(kind) for kind in (F32, BF16, F16)] == [F32, BF16, F16]


@pytest.mark.parametrize("dtype", [BF16, F16, F32, INT8, FP8])
def test_the_cache_takes_what_it_says_and_is_zero(cuda_ops: Ops, dtype: torch.dtype) -> None:
    layout = KVLayout(3, 5, 2, 24, 32, dtype)
    keys, values = cuda_ops.empty_cache(layout)
    assert keys.shape[:3] == values.shape[:3] == (3, 5, 2)
    assert 5 * cuda_ops.page_bytes(layout) == keys.nbytes + values.nbytes
    per_element = 2 * 3 * 2 * 32  # keys and values, layers, heads, tokens
    scales = 2 if dtype in (INT8, FP8) else 0
    assert cuda_ops.page_bytes(layout) == per_element * (24 * dtype.itemsize + scales)
    for cache in (keys, values):
        assert cache.dtype == dtype
        assert not cache.view(torch.uint8).any()


@pytest.mark.parametrize(
    ("head_dim", "page_size", "dtype", "message"),
    [
        (63, 16, BF16, "head_dim=63 must be even"),
        (258, 16, BF16, "head_dim=258 .* at most 256"),
        (64, 24, BF16, "page_size=24 a multiple of 16"),
        (64, 16, torch.int32, "kv_cache_dtype"),
    ],
)
def test_a_cache_that_the_layout_cannot_hold_is_refused(
    cuda_ops: Ops, head_dim: int, page_size: int, dtype: torch.dtype, message: str
) -> None:
    layout = KVLayout(1, 1, 1, head_dim, page_size, dtype)
    for call in (cuda_ops.page_bytes, cuda_ops.empty_cache):
        with pytest.raises(ValueError, match=message):
            call(layout)


@pytest.mark.parametrize("dtype", [BF16, INT8, FP8])
def test_tests_read_what_they_wrote(cuda_ops: Ops, dtype: torch.dtype) -> None:
    """The helpers of tests.ops.caches, on the layout that the kernels read."""
    keys, values = (x[0] for x in caches.poisoned(cuda_ops, KVLayout(1, 3, 2, 64, 16, dtype)))
    k, v = torch.randn(2, 20, 2, 64).unbind(0)
    slots = torch.randperm(48)[:20].int()
    caches.write(keys, values, k, v, slots)
    for x, read in zip((k, v), caches.read(keys, values, torch.arange(3), 64), strict=True):
        step = {BF16: 2**-8, INT8: 2**-5, FP8: 2**-3}[dtype]
        torch.testing.assert_close(read[:, slots.long()].transpose(0, 1), x, atol=step, rtol=step)
        untouched = [slot for slot in range(48) if slot not in slots.tolist()]
        assert read[:, untouched].isnan().all()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weights_keep_their_values_between_a_file_and_the_device(cuda_ops: Ops, bits: int, gated: bool) -> None:
    ops = cuda_ops._ops if isinstance(cuda_ops, OnDevice) else cuda_ops
    host = host_ops(ops)
    assert host.name == "cpu"
    weight = torch.randn(48, 96)
    packed: PackedLinear | QuantizedLinear
    if bits == 16:
        packed = host.pack_linear(weight.bfloat16(), gated=gated)
    else:
        rounded = host.quantize([weight], bits=bits, group_size=32 if bits == 4 else 0, symmetric=True)
        packed = host.pack_quantized(rounded, Activations.FLOAT, gated=gated)
    back = to_host(ops, from_host(ops, packed))
    assert back.gated == gated
    assert torch.equal(back.data, packed.data)
    assert from_host(host, packed) is packed
