"""Typed reads of an HF-style config that refuse what they don't know."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from octavo_engine.ops import Activation

__all__ = ["ConfigReader", "UnsupportedModel"]

_REQUIRED: Any = object()
_MOST = (1 << 31) - 1  # positions, ids and sizes are 32-bit integers in the kernels

_ACTIVATIONS = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}


class UnsupportedModel(Exception):
    """The checkpoint's config asks for something the engine does not do. `key`, `value`, `allowed` say what."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"config {key}={value!r} is not supported; allowed: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


class ConfigReader:
    """Reads of config.json's keys by type. A key that is null counts as absent.

    Several keys may be given where families disagree on a name: the first that is present is read. Without a
    default an absent key raises UnsupportedModel, as does a value of another type.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigReader:
        """The same config where keys that are absent, not null, have the values of `defaults`."""
        return ConfigReader({**defaults, **self.values})

    def without(self, *keys: str) -> ConfigReader:
        """The same config without these keys."""
        return ConfigReader({key: value for key, value in self.values.items() if key not in keys})

    def get(self, *keys: str, default: Any = _REQUIRED) -> Any:
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        if default is _REQUIRED:
            raise UnsupportedModel(keys[0], None, "a value; the model's config must give it")
        return default

    def integer(self, *keys: str, default: Any = _REQUIRED, minimum: int = 1) -> int:
        value = self.get(*keys, default=default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= _MOST:
            raise UnsupportedModel(keys[0], value, f"an integer from {minimum} to {_MOST}")
        return value

    def number(self, *keys: str, default: Any = _REQUIRED) -> float:
        value = self.get(*keys, default=default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise UnsupportedModel(keys[0], value, "a finite number")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            raise UnsupportedModel(key, value, "true or false")
        return value

    def activation(self, *keys: str, default: str) -> Activation:
        value = self.get(*keys, default=default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise UnsupportedModel(keys[0], value, ", ".join(sorted(_ACTIVATIONS)))
        return _ACTIVATIONS[value]

    def only(self, key: str, allowed: Iterable[Any]) -> None:
        """Refuse a key whose value would change the equations; absent and null are fine."""
        allowed = list(allowed)
        value = self.get(key, default=None)
        if value is not None and value not in allowed:
            raise UnsupportedModel(key, value, ", ".join(map(repr, [*allowed, None])))
