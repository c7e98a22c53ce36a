"""The engines that are compared: their names, and the width of the weights they read.

A name is "engine:weights". Of octavo's, weights are bf16, stored, or what EngineOptions.quantization takes; "int4" is
in groups of OCTAVO_INT4. OpenVINO's are in groups of INT4_GROUP: its exporter wants them to divide the model's width.
"""

from __future__ import annotations

__all__ = ["DEFAULT", "INT4_GROUP", "OCTAVO_INT4", "best", "is_known", "order", "width"]

_PEERS = {
    "vllm:bf16": 16,
    "vllm:eager": 16,
    "openvino:bf16": 16,
    "openvino:int8": 8,
    "openvino:int4": 4,
    "llamacpp:bf16": 16,
    "llamacpp:q8_0": 8,
    "llamacpp:q4_0": 4,
    "llamacpp:q4_1": 4,
    "transformers:bf16": 16,
}
DEFAULT = {
    "smollm2": (
        *("octavo:bf16", "octavo:int8", "octavo:int4", "octavo:stored"),
        *("vllm:bf16", "openvino:bf16", "openvino:int8", "openvino:int4"),
        *("llamacpp:bf16", "llamacpp:q8_0", "llamacpp:q4_0", "llamacpp:q4_1", "transformers:bf16"),
    ),
    # llama.cpp's and transformers' bfloat16 are left out: minutes a case, and far behind on the smaller model.
    "tinyllama": (
        *("octavo:bf16", "octavo:int8", "octavo:int4"),
        *("vllm:bf16", "openvino:bf16", "openvino:int8", "openvino:int4", "llamacpp:q8_0", "llamacpp:q4_0"),
    ),
}
OCTAVO_INT4 = {"smollm2": "int4:g32", "tinyllama": "int4:g128"}
INT4_GROUP = {"smollm2": 64, "tinyllama": 128}


def is_known(engine: str) -> bool:
    return engine in _PEERS or engine.startswith("octavo:")


def width(engine: str) -> int:
    """Bits a weight, scales aside: 16, 8 or 4."""
    if engine in _PEERS:
        return _PEERS[engine]
    name = engine.partition(":")[2]
    return 16 if name in ("bf16", "none") else 4 if name.startswith(("int4", "weight_int4", "stored")) else 8


def order(engine: str) -> tuple[bool, int, int]:
    """To sort by: octavo first, wide weights before narrow ones, then as listed above."""
    return not engine.startswith("octavo"), -width(engine), list(_PEERS).index(engine) if engine in _PEERS else 0


def best(rates: dict[str, float | None], bits: int | None = None) -> float | None:
    """The fastest peer's rate, of all or of those whose weights are as wide; None where there is none."""
    found = [
        rate
        for engine, rate in rates.items()
        if rate and not engine.startswith("octavo") and (bits is None or width(engine) == bits)
    ]
    return max(found, default=None)
