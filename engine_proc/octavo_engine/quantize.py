"""`octavo quantize MODEL OUT`: a checkpoint quantised once, as a folder that needs none of the original.

OUT holds config.json (its quantization_config says what was done), the tokenizer's files and octavo.safetensors, the
packed weights of every tensor. `octavo chat OUT` runs it with no further option.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.options import Quantization, replace
from octavo_engine import config

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.weights import Source

__all__ = ["main", "write_folder"]

_COPIED = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".spm", ".py")
_LEGAL = ("LICENSE", "NOTICE", "USE_POLICY")


class QuantizeFailed(Exception):
    """One line for the terminal."""


def main() -> int:
    """Exit status 0, 1 on an error (one line on stderr), 2 on a wrong command line."""
    arguments = _arguments()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    show = _Progress()
    try:
        quantization = _quantization(arguments)
        out = Path(arguments.out).expanduser()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise QuantizeFailed(f"{out} exists and is not an empty folder")
        started = time.perf_counter()
        size, what = _quantize(arguments, quantization, out, show)
    except (QuantizeFailed, ValueError, OSError) as error:
        show.end()
        print(f"octavo: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    show.end()
    print(f"{out}: {what}, {size / 1e6:,.0f} MB, {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return 0


_HEADS: dict[str, bool | str] = {"int8": "int8", "scheme": True, "float": False}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="octavo quantize",
        description="Quantise a model once and write it as a folder that octavo loads quickly, with no further option.",
    )
    parser.add_argument("model", help="a local folder, a GGUF file, or a hub id")
    parser.add_argument("out", help="a folder that does not exist yet, or is empty")
    parser.add_argument("--scheme", default="int4", help="int4, int8, llm_int8, or a short form as int4:g64,symmetric")
    parser.add_argument("--group-size", type=int, help="of int4: weights a scale, 32, 64 or 128")
    parser.add_argument("--symmetric", action="store_true", help="of int4: a scale a group and no offset")
    parser.add_argument("--activations", help="int8 or float; it can be changed when the model is loaded")
    parser.add_argument("--threshold", type=float, help="of llm_int8: activations at least this large stay in float")
    parser.add_argument(
        "--lm-head",
        choices=list(_HEADS),
        help="the projection to the vocabulary: in 8 bits (default), like the other layers, or left in floats",
    )
    parser.add_argument("--embeddings", action="store_true", help="also an embedding of its own, in int8")
    parser.add_argument("--dtype", default="auto", help="of what stays in floats: auto, bfloat16, float32, float16")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--num-threads", type=int, default=0, help="0: all cores")
    return parser.parse_args()


def _quantization(arguments: argparse.Namespace) -> Quantization:
    """Raises InvalidOption, a ValueError."""
    changes: dict[str, Any] = {}
    for name in ("group_size", "activations", "threshold"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if arguments.symmetric:
        changes["symmetric"] = True
    if arguments.lm_head is not None:
        changes["lm_head"] = _HEADS[arguments.lm_head]
    if arguments.embeddings:
        changes["embeddings"] = True
    quantization: Quantization = replace(Quantization.parse(arguments.scheme), **changes)
    if quantization.scheme == "none":
        raise QuantizeFailed("--scheme none: nothing to do; int4, int8 and llm_int8 quantise")
    return quantization


def _quantize(arguments: argparse.Namespace, quantization: Quantization, out: Path, show: _Progress) -> tuple[int, str]:
    """Bytes written, and what they are."""
    show("start", 0, 0, "importing torch")
    import torch

    from octavo_engine.models import CheckpointMismatch, NotQuantizable, UnsupportedModel
    from octavo_engine.ops import OpsUnavailable, load_ops
    from octavo_engine.weights import SourceError, open_source

    torch.set_num_threads(1)
    if arguments.dtype not in ("auto", "bfloat16", "float32", "float16"):
        raise QuantizeFailed(f"--dtype {arguments.dtype}: auto, bfloat16, float32 or float16")
    try:
        ops = load_ops("cpu", num_threads=config.resolve_threads(arguments.num_threads))
        source = open_source(arguments.model, arguments.revision, show)
        dtype = getattr(torch, config.resolve_dtype(arguments.dtype, source.config, ops.isa))
        return write_folder(source, ops, dtype, quantization, out, show)
    except (OpsUnavailable, SourceError, UnsupportedModel, CheckpointMismatch, NotQuantizable) as error:
        raise QuantizeFailed(str(error)) from error


def write_folder(
    source: Source, ops: Ops, dtype: Any, quantization: Quantization, out: Path, progress: Any = None
) -> tuple[int, str]:
    """Quantise and write the folder, whole or not at all; dtype (torch's) is of what stays in floats.

    Returns (bytes of the weights, what they are). Raises as load_model does, OSError, and QuantizeFailed for a source
    that is quantised already.
    """
    from octavo_engine.models import load_model, packed_contents, quantization_of
    from octavo_engine.weights.packed_file import LAYOUT_VERSION, PACKED_NAME, write_packed

    if source.kind == "packed":
        raise QuantizeFailed(f"{source.path} is quantised already; take the original model")
    resolved = quantization_of(source.checkpoint, quantization)
    assert resolved is not None
    made: dict[str, LinearWeight | Any] = {}
    load_model(source, ops, dtype, progress, quantization=resolved, made=made)
    tensors, settings = packed_contents(ops, made, resolved, dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write_packed(scratch / PACKED_NAME, tensors, {**settings, "octavo": config.VERSION}, progress)
        told = {
            "quant_method": "octavo",
            "description": resolved.describe(),
            **settings["quantization"],
            "octavo_version": config.VERSION,
            "layout_version": LAYOUT_VERSION,
            "weights": PACKED_NAME,
        }
        (scratch / "config.json").write_text(json.dumps(source.config | {"quantization_config": told}, indent=2))
        _copy_tokenizer(source, scratch)
        os.chmod(scratch, 0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return sum(tensor.nbytes for tensor in tensors.values()), resolved.describe()


def _copy_tokenizer(source: Source, folder: Path) -> None:
    from octavo_engine.weights.gguf_file import GGUFFile
    from octavo_engine.weights.packed_file import GGUF_TOKENIZER_NAME

    if source.kind == "gguf":
        (folder / GGUF_TOKENIZER_NAME).write_bytes(GGUFFile(source.path).without_tensors())
        return
    for path in sorted(source.path.iterdir()):
        wanted = path.name.endswith(_COPIED) or path.name.startswith(_LEGAL)
        if path.is_file() and wanted and path.name != "config.json" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


class _Progress:
    """A line on a terminal that is written over; on anything else, a line a stage."""

    def __init__(self) -> None:
        self._live, self._stage = sys.stderr.isatty(), ""

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        share = f"{done / total:4.0%} of {total / 1e6:,.0f} MB " if total else ""
        if self._live:
            print(f"\r\x1b[K{stage:8} {share}{text}"[:110], end="", file=sys.stderr, flush=True)
        elif stage != self._stage:
            print(f"{stage} ...", file=sys.stderr, flush=True)
        self._stage = stage

    def end(self) -> None:
        if self._live and self._stage:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
