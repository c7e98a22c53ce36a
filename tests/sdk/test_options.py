"""Options: what is taken, and what is refused by name."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import octavo
from octavo.options import EngineOptions, SamplingParams


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    options = EngineOptions(model="m", device=device)
    assert msgspec.json.decode(msgspec.json.encode(options), type=EngineOptions) == options


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cuda:0 ", "", 0, None])
def test_other_devices_are_refused(device: Any) -> None:
    with pytest.raises(octavo.InvalidOption, match=r"device=.*'auto', 'cpu', 'cuda' or 'cuda:N'"):
        EngineOptions(model="m", device=device)


@pytest.mark.parametrize("share", [0.1, 0.9, 1, 1.0])
def test_a_share_of_the_memory(share: float) -> None:
    assert EngineOptions(model="m", gpu_memory_utilization=share).gpu_memory_utilization == share


@pytest.mark.parametrize("share", [0, -0.1, 1.1, 90, float("nan"), "0.9", True, None])
def test_what_is_no_share_is_refused(share: Any) -> None:
    with pytest.raises(octavo.InvalidOption, match="gpu_memory_utilization"):
        EngineOptions(model="m", gpu_memory_utilization=share)


@pytest.mark.parametrize("dtype", ["auto", "int8", "fp8", "bfloat16"])
def test_dtypes_of_the_cache(dtype: str) -> None:
    assert EngineOptions(model="m", kv_cache_dtype=dtype).kv_cache_dtype == dtype


def test_adapters() -> None:
    options = EngineOptions(model="m", loras={"a": "/x"})
    assert options.enable_lora
    assert msgspec.json.decode(msgspec.json.encode(options), type=EngineOptions) == options
    for wrong in ({"a": ""}, {"": "/x"}, {"a": 1}, ["a"], {str(i): "/x" for i in range(9)}):
        with pytest.raises(octavo.InvalidOption, match="loras"):
            EngineOptions(model="m", loras=wrong)  # type: ignore[arg-type]
    for name, value in (("max_loras", 0), ("max_lora_rank", 513), ("enable_lora", 1)):
        with pytest.raises(octavo.InvalidOption, match=name):
            EngineOptions(model="m", **{name: value})  # type: ignore[arg-type]


def test_adapters_on_the_command_line() -> None:
    from octavo.cli import _engine_options, _parser

    arguments = ["serve", "m", "--loras", "a=/x", "--loras", "b=owner/name", "--max-loras", "4"]
    options = _engine_options(_parser().parse_args(arguments))
    assert options.loras == {"a": "/x", "b": "owner/name"}
    assert options.max_loras == 4
    assert _engine_options(_parser().parse_args(["serve", "m"])) == EngineOptions(model="m", quantized_cache="auto")


@pytest.mark.parametrize(("name", "most"), [("stop", 8192), ("bad_words", 65536)])
def test_strings_have_an_end(name: str, most: int) -> None:
    octavo.SamplingParams(**{name: "x" * most})  # type: ignore[arg-type]
    with pytest.raises(octavo.InvalidOption, match=f"{name}='{most + 4} characters': at most {most} in all"):
        octavo.SamplingParams(**{name: ["xx"] * (most // 2 + 2)})  # type: ignore[arg-type]


def test_lists_are_lists_to_a_type_checker_too() -> None:
    params = SamplingParams(stop=["a"], stop_token_ids=[5], allowed_token_ids=[5], bad_words=["b"])
    assert (params.stop, params.stop_token_ids, params.allowed_token_ids) == (("a",), (5,), (5,))
    hints = typing.get_type_hints(SamplingParams)
    assert hints["stop"] == hints["bad_words"] == str | Sequence[str]
    assert hints["stop_token_ids"] == typing.get_type_hints(octavo.BeamParams)["stop_token_ids"] == Sequence[int]
    assert typing.get_type_hints(octavo.Choice)["choices"] == Sequence[str]


@pytest.mark.parametrize(
    ("field", "value"), [("max_model_len", 1 << 31), ("kv_cache_memory", 1 << 80), ("num_threads", 1025)]
)
def test_what_no_engine_could_take_fails_here(field: str, value: int) -> None:
    with pytest.raises(octavo.InvalidOption, match=f"{field}={value}: a whole number in "):
        EngineOptions(**{field: value})


ODD: list[Any] = [None, True, False, 0, -1, 1, 1.0, 2.5, "", "x", b"", b"x", (), [], {}, set(), [None], {"a": None}]
ODD += [{1: 2}, object()]
OPTIONS: dict[type[Any], dict[str, Any]] = {
    SamplingParams: {},
    octavo.BeamParams: {},
    EngineOptions: {},
    octavo.Quantization: {"scheme": "int4"},
    octavo.NGram: {},
    octavo.Draft: {"model": "m"},
    octavo.JsonSchema: {"schema": {}},
    octavo.Regex: {},
    octavo.Choice: {},
    octavo.Grammar: {},
}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in OPTIONS for field in kind.__struct_fields__],  # type: ignore[attr-defined]
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_taken_is_what_the_engine_reads(kind: type[Any], field: str) -> None:
    """A frame that it can't read is dropped, and who sent it would wait for ever."""
    for value in ODD:
        try:
            made = kind(**{**OPTIONS[kind], field: value})
        except octavo.InvalidOption as error:
            assert error.field.rpartition(".")[2].split("[")[0].split()[0] in (*kind.__struct_fields__, "quantization")
            continue
        for module in (msgspec.msgpack, msgspec.json):
            assert module.decode(module.encode(made, enc_hook=octavo.wire.plain), type=kind) == made, value


def test_what_a_request_leaves_out_can_be_handed_on() -> None:
    names = ("stop", "stop_token_ids", "bad_words", "logit_bias", "logits_processors")
    assert SamplingParams(**dict.fromkeys(names), top_k=-1) == SamplingParams()
    with pytest.raises(octavo.InvalidOption, match="top_k=-2"):
        SamplingParams(top_k=-2)
