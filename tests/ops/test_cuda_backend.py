"""CudaOps but for its kernels: what it says where it can't run, its cache, and the weights of files."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import torch

from octavo_engine.ops import Activations, KVLayout, Ops, OpsUnavailable, PackedLinear, QuantizedLinear, load_ops
from octavo_engine.ops.cuda import CudaOps, load_library
from octavo_engine.ops.host_layout import from_host, host_ops, to_host
from tests.ops import caches
from tests.support.cuda import OnDevice

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
