"""What quantisation costs: the rise of perplexity on English text, of every scheme against bfloat16.

    python -m tests.bench.quality [--only int8 int4:g32] [--tokens 20000]

SmolLM2's file holds Q4_1 (groups of 32 with an offset) in its layers and Q8_0 in its head and embedding; "bf16" and
"float32" run what they dequantise to, "stored" runs the file's own codes. Asymmetric int4 in groups of 32 finds nearly
the same numbers again, so its layers lose next to nothing; symmetric int4 and wider groups
are the honest tests. The text is english.py's; the measure is octavo.perplexity, where it is defined.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import uvloop

from octavo import AsyncClient, EngineOptions, OctavoError
from octavo.perplexity import Perplexity, perplexity, rise
from tests.bench.english import english_text
from tests.bench.machine import save
from tests.bench.models import model_path
from tests.bench.report import table


@dataclass(frozen=True)
class Setting:
    """quantization and kv: as in EngineOptions. aim: the rise that the project allows itself, or None."""

    name: str
    quantization: str | None
    kv: str = "auto"
    aim: float | None = None
    dtype: str = "bfloat16"


def _int4() -> list[Setting]:
    made = []
    for size in (32, 64, 128):
        for kind in ("symmetric", "asymmetric"):
            for activations in ("int8", "float"):
                form = f"int4:g{size},{kind},{activations}"
                aim = 0.03 if size == 32 else None
                made.append(Setting(form, form, aim=aim))
    return made


# The head (and with it the tied embedding) in bfloat16 and in 4 bits, where the default is 8.
_HEAD_APART = ["int8:no_lm_head", "int4:no_lm_head", "int4:lm_head"]

SETTINGS = [
    Setting("bf16", "none"),
    Setting("float32", "none", dtype="float32"),
    Setting("stored", None),
    Setting("int8:int8", "int8:int8", aim=0.01),
    Setting("int8:float", "int8:float", aim=0.01),
    Setting("llm_int8", "llm_int8", aim=0.01),
    *_int4(),
    *(Setting(form, form) for form in _HEAD_APART),
    Setting("bf16, int8 KV", "none", "int8", aim=0.005),
    Setting("int4:g32, int8 KV", "int4:g32", "int8"),
    Setting("stored, int8 KV", None, "int8"),
]


def main() -> int:
    """Measure, print and write tests/bench/results/NAME.json; exit status 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beside bf16: " + ", ".join(s.name for s in SETTINGS))
    parser.add_argument("--tokens", type=int, default=20_000, help="of the text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--name", default="quality-smollm2", help="of the result file")
    options = parser.parse_args()
    known = {setting.name: setting for setting in SETTINGS}
    todo = [known[name] if name in known else Setting(name, name) for name in options.only or known]
    if todo[0].name != "bf16":
        todo.insert(0, known["bf16"])
    rows = uvloop.run(_measure(todo, options))
    save(options.name, {"context": options.context, "stride": options.stride, "quality": rows})
    return int(any(row["met"] is False for row in rows))


async def _measure(todo: list[Setting], options: argparse.Namespace) -> list[dict[str, Any]]:
    text = english_text().read_text()
    tokens: list[int] = []
    per_token = 0.0
    base: Perplexity | None = None
    rows: list[dict[str, Any]] = []
    for setting in todo:
        engine = EngineOptions(
            dtype=setting.dtype,
            quantization=setting.quantization,
            kv_cache_dtype=setting.kv,
            max_model_len=options.context + 1,
            ready_timeout=600.0,
            heartbeat_timeout=600.0,
        )
        row: dict[str, Any] = {"setting": setting.name, "aim": setting.aim, "met": None}
        rows.append(row)
        try:
            async with AsyncClient(model_path("smollm2"), engine) as client:
                if not tokens:
                    tokens = await client.tokenize(text)
                    per_token = len(text.encode()) / len(tokens)
                    tokens = tokens[: options.tokens]
                made = await perplexity(client, tokens, context=options.context, stride=options.stride)
        except OctavoError as error:
            row["error"] = str(error).splitlines()[0]
            print(f"{setting.name}: {row['error']}", flush=True)
            continue
        base = base or made
        found = rise(base, made)
        row |= {
            "perplexity": made.perplexity,
            "bits_per_byte": made.bits_per_byte(per_token),
            "rise": found.value,
            "rise_error": found.error,
            "tokens": len(made.logprobs),
            "tokens_read": made.tokens_read,
            "seconds": made.seconds,
        }
        if setting.aim is not None:
            row["met"] = found.value <= setting.aim
        shown = f"perplexity {made.perplexity:.4f}, {found.value:+.2%} ± {found.error:.2%}, {made.seconds:.0f} s"
        print(f"{setting.name:36}  {shown}", flush=True)
    _print(rows, options)
    return rows


def _print(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    cells = []
    for row in rows:
        if "error" in row:
            cells.append([row["setting"], "-", "-", "-", "-", "-", row["error"][:40]])
            continue
        aim = "" if row["aim"] is None else f"{row['aim']:.1%}" + (" met" if row["met"] else " MISSED")
        cells.append(
            [
                row["setting"],
                f"{row['perplexity']:.3f}",
                f"{row['bits_per_byte']:.4f}",
                f"{row['rise']:+.2%}",
                f"{row['rise_error']:.2%}",
                f"{row['seconds']:.0f}",
                aim,
            ]
        )
    scored = next((row["tokens"] for row in rows if "tokens" in row), 0)
    title = f"SmolLM2-135M, {scored:,} tokens of English, context {options.context}, stride {options.stride}"
    print(table(title, ["", "perplexity", "bits/byte", "rise", "±", "seconds", "aim"], cells))


if __name__ == "__main__":
    raise SystemExit(main())
