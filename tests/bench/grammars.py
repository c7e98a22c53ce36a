"""llguidance beside xgrammar: which library writes the masks of structured output.

    python -m tests.bench.grammars FOLDER...      (of unpacked packages that ship JSON schemas; xgrammar importable)

Every JSON schema in the folders that JSON Schema's own meta-schema allows, and those that pydantic makes of classes
in openai.types. For each library: the share it takes, as it stands and with what it can't enforce left out; what a
compile takes; the first mask and those of outputs drawn at random through the masks, at SmolLM2's 49,152 tokens and
at 151,936 (SmolLM2's, and the commonest of them in pairs); and of the outputs that ended, how many the schema allows
by jsonschema.

Decision: llguidance. As recorded (results/grammars.json) it compiles 12 to 130 times faster, which leaves little to
hide from the neighbours. Its masks cost two to six times xgrammar's, some tens of microseconds a token: next to a
step that is nothing, and a schema that takes seconds is not. What it accepts it enforces (every output was valid),
and it refuses the rest by the keyword's name or leaves that out if told so; xgrammar accepts more as it stands
because it drops what it does not know, and a fifth of what it wrote for the schemas of packages was invalid. It has
no dependency (xgrammar asks for triton, torch and transformers), bounds a grammar's cost by counting, and its Lark
dialect holds JSON schemas inside other text, which tool calls are made of.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import pkgutil
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from numpy.typing import NDArray

from octavo_engine.text import load_text
from octavo_engine.weights import open_source
from tests.bench.machine import save
from tests.bench.report import figure, table
from tests.support.checkpoints import real_model

LARGE = 151_936
WALK_TOKENS = 200
Mask = NDArray[np.uint8]


def schemas_in(folders: list[Path]) -> Iterator[tuple[str, Any]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            try:
                schema = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if isinstance(schema, dict) and ("$schema" in schema or "properties" in schema) and _is_schema(schema):
                yield f"{path.parent.name}/{path.name}", schema


def pydantic_schemas() -> Iterator[tuple[str, Any]]:
    import openai.types
    import pydantic

    seen: set[str] = set()
    for module in pkgutil.walk_packages(openai.types.__path__, "openai.types."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, pydantic.BaseModel) and name not in seen:
                seen.add(name)
                yield name, value.model_json_schema()


def _is_schema(schema: Any) -> bool:
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except Exception:  # whatever it is: not a schema by its own meta-schema
        return False
    return True


class Vocabulary:
    """SmolLM2's tokens as bytes; `size` beyond them, pairs of the commonest (the lowest ids)."""

    def __init__(self, size: int | None = None) -> None:
        text = load_text(open_source(str(real_model())), tokenizer=None, trust_remote_code=False)
        self.tokens, self.special = text.token_bytes()
        self.encode: Callable[[str], list[int]] = lambda string: text.encode(string, add_special_tokens=False)
        (self.eos,) = text.eos_token_ids
        common = [token for i, token in enumerate(self.tokens[:600]) if i not in self.special]
        pairs = (a + b for a in common for b in common)
        known = set(self.tokens)
        while size is not None and len(self.tokens) < size:
            pair = next(pairs)
            if pair not in known:
                known.add(pair)
                self.tokens.append(pair)


class LLGuidance:
    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        class Tokenizer:
            eos_token_id, bos_token_id = vocabulary.eos, None
            tokens, special_token_ids = vocabulary.tokens, sorted(vocabulary.special)

            def __call__(self, text: bytes | str) -> list[int]:
                return vocabulary.encode(text.decode() if isinstance(text, bytes) else text)

        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokenizer()))
        self._mask = np.zeros(-(-len(vocabulary.tokens) // 32), np.int32)

    def compile(self, schema: str, lenient: bool) -> Any:
        library = self._library.LLMatcher
        grammar = library.grammar_from_json_schema(schema, overrides={"lenient": True} if lenient else None)
        matcher = library(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def matcher(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def mask(self, matcher: Any) -> NDArray[np.int32]:
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return self._mask

    def push(self, matcher: Any, token: int) -> bool:
        return bool(matcher.consume_token(token))


class XGrammar:
    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._library = xgrammar
        tokens: list[Any] = [b"" if i in vocabulary.special else t for i, t in enumerate(vocabulary.tokens)]
        self._info = xgrammar.TokenizerInfo(tokens, stop_token_ids=[vocabulary.eos])
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=2, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema: str, lenient: bool) -> Any:
        return self._compiler.compile_json_schema(schema)  # what it does not know it leaves out

    def matcher(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def mask(self, matcher: Any) -> NDArray[np.int32]:
        matcher.fill_next_token_bitmask(self._mask)
        bits: NDArray[np.int32] = self._mask.numpy()[0]
        return bits

    def push(self, matcher: Any, token: int) -> bool:
        return bool(matcher.accept_token(token))


def walk(library: Any, compiled: Any, vocabulary: Vocabulary, seed: int) -> tuple[bytes | None, list[float]]:
    """An output drawn at random, None if it did not end, and seconds of each mask. What closes is preferred."""
    draw = random.Random(seed)
    matcher = library.matcher(compiled)
    output, times = b"", []
    closing = {i for i, t in enumerate(vocabulary.tokens) if t in (b'"', b"}", b"]", b'"}', b'"]', b'",', b"}}")}
    short = [
        i for i, t in enumerate(vocabulary.tokens) if 0 < len(t) < 5 and t.isascii() and i not in vocabulary.special
    ]
    likely = np.zeros(len(vocabulary.tokens), bool)
    likely[short] = True
    for _ in range(WALK_TOKENS):
        start = time.perf_counter()
        mask = library.mask(matcher)
        times.append(time.perf_counter() - start)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(likely)].astype(bool)
        if allowed[vocabulary.eos]:
            return output, times
        closes = [i for i in closing if allowed[i]]
        candidates = closes if closes and draw.random() < 0.6 else np.flatnonzero(allowed & likely)
        if not len(candidates):
            candidates = np.flatnonzero(allowed)
        if not len(candidates):
            return None, times
        token = int(draw.choice(list(candidates)))
        if not library.push(matcher, token):
            return None, times
        output += vocabulary.tokens[token]
    return None, times


def measure(library: Any, vocabulary: Vocabulary, schemas: list[tuple[str, Any]], limit: float) -> dict[str, Any]:
    """limit: seconds after which a schema counts as refused; each is tried in a forked child that can be killed."""
    found: dict[str, Any] = {"schemas": len(schemas), "taken": 0, "taken_lenient": 0, "ended": 0, "valid": 0}
    refused: dict[str, str] = {}
    compiles, firsts, masks = [], [], []
    for name, schema in schemas:
        one = _in_child(lambda schema=schema: _try(library, vocabulary, schema), limit)  # type: ignore[misc]
        if "refused" in one:
            refused[name] = one["refused"]
            found["taken_lenient"] += one.get("lenient", False)
            continue
        for key in ("ended", "valid"):
            found[key] += one[key]
        found["taken"] += 1
        found["taken_lenient"] += 1
        compiles.append(one["compile"])
        firsts += one["firsts"]
        masks += one["masks"]
    spreads = {"compile_ms": _spread(compiles), "first_mask_ms": _spread(firsts), "mask_ms": _spread(masks)}
    return {**found, **spreads, "refused": refused}


def _try(library: Any, vocabulary: Vocabulary, schema: Any) -> dict[str, Any]:
    text = json.dumps(schema)
    start = time.perf_counter()
    try:
        compiled = library.compile(text, False)
    except Exception as error:  # each library has errors of its own
        why = str(error).splitlines()[0][:120]
        try:
            library.compile(text, True)
        except Exception:
            return {"refused": why}
        return {"refused": why, "lenient": True}
    one: dict[str, Any] = {"compile": time.perf_counter() - start, "firsts": [], "masks": [], "ended": 0, "valid": 0}
    for seed in range(2):
        output, times = walk(library, compiled, vocabulary, seed)
        one["firsts"] += times[: 1 - seed]
        one["masks"] += times[1:]
        if output is not None:
            one["ended"] += 1
            one["valid"] += _allows(schema, output)
    return one


def _in_child(work: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()
    try:
        if receiver.poll(limit):
            found: dict[str, Any] = receiver.recv()
            return found
        return {"refused": f"took more than {limit:g} s"}
    except EOFError:
        return {"refused": "the process died"}
    finally:
        child.kill()
        child.join()


def _allows(schema: Any, output: bytes) -> bool:
    validator = jsonschema.validators.validator_for(schema)(schema)
    try:
        return bool(validator.is_valid(json.loads(output)))
    except ValueError:
        return False
    except Exception:  # a reference that jsonschema would have to fetch
        return True


def _spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if not seconds:
        return {"mean": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    ms = np.array(seconds) * 1000
    return {
        "mean": float(ms.mean()),
        "p50": float(np.percentile(ms, 50)),
        "p99": float(np.percentile(ms, 99)),
        "max": float(ms.max()),
    }


def row(name: str, found: dict[str, Any]) -> list[str]:
    compile_ms, first, mask = found["compile_ms"], found["first_mask_ms"], found["mask_ms"]
    return [
        name,
        f"{found['taken'] / found['schemas']:.1%}",
        f"{found['taken_lenient'] / found['schemas']:.1%}",
        *(figure(compile_ms[k]) for k in ("p50", "p99", "max")),
        *(figure(1000 * first[k]) for k in ("p50", "p99")),
        *(figure(1000 * mask[k]) for k in ("mean", "p99")),
        f"{found['valid']}/{found['ended']}",
    ]


HEADER = [
    "library, tokens", "takes", "lenient", "compile ms", "p99", "max", "1st mask us", "p99", "mask us", "p99", "valid",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds a schema may take (default: 3)")
    parser.add_argument("--pydantic", type=int, default=60, help="how many of pydantic's schemas (default: 60)")
    arguments = parser.parse_args()
    pydantic = list(pydantic_schemas())
    random.Random(0).shuffle(pydantic)
    sets = {"packages": list(schemas_in(arguments.folders)), "pydantic": pydantic[: arguments.pydantic]}
    makes: list[Callable[[Vocabulary], Any]] = [LLGuidance, XGrammar]
    result: dict[str, Any] = {}
    for which, schemas in sets.items():
        rows = []
        for size in (None, LARGE):
            vocabulary = Vocabulary(size)
            for make in makes:
                gc.collect()
                start = time.perf_counter()
                library = make(vocabulary)
                built = time.perf_counter() - start
                found = measure(library, vocabulary, schemas, arguments.limit)
                name = f"{library.name}, {len(vocabulary.tokens):,}"
                result.setdefault(which, {})[name] = {"tokenizer_ms": built * 1000, **found}
                rows.append(row(name, found))
        print(table(f"{len(schemas)} schemas: {which}", HEADER, rows))
    save("grammars", result)


if __name__ == "__main__":
    main()
