"""What a caller can set: EngineOptions for the engine, SamplingParams for a request. Frozen and validated.

Both are msgspec Structs, so they cross the wire as they are; `__post_init__` runs on construction and on decoding
alike, and a wrong value raises `InvalidOption` before an engine is started or a request sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.checks import choice as _choice
from octavo.checks import flag as _flag
from octavo.checks import number as _number
from octavo.checks import whole as _whole
from octavo.errors import InvalidOption
from octavo.quantization import Quantization
from octavo.speculation import Draft, NGram, parse
from octavo.structured import Choice, Grammar, JsonObject, JsonSchema, Regex, Structured

__all__ = [
    "MAX_LOGPROBS",
    "Choice",
    "EngineOptions",
    "Grammar",
    "JsonObject",
    "JsonSchema",
    "Quantization",
    "Regex",
    "SamplingParams",
    "Structured",
    "replace",
]

_GIB = 1 << 30
MAX_LOGPROBS = 1024
# Characters. What the engine makes of them takes half a microsecond and 300 bytes each, and is kept for other requests.
_MOST_STOP, _MOST_BAD_WORDS = 8192, 65536
# None means the same, and top_k=-1 what 0 does, as to vLLM: callers hand on what their own requests leave out.
_EMPTY: dict[str, type] = {
    "stop": tuple,
    "stop_token_ids": tuple,
    "bad_words": tuple,
    "logit_bias": dict,
    "logits_processors": dict,
}


def replace(options: Any, **changes: Any) -> Any:
    """A copy of frozen options with some fields changed, validated again."""
    return msgspec.structs.replace(options, **changes)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How one request is decoded. Field names are those of vLLM and the OpenAI API.

    n: completions of the prompt; they share its pages. best_of: so many are drawn, and the n of the highest mean
    logprob a token returned, best first (not in a stream). max_tokens None: up to the context's end.
    temperature 0 is greedy. top_k 0 (or -1), top_p 1 and min_p 0 are off.
    repetition_penalty (arXiv 1909.05858) counts prompt and output, presence_ and frequency_penalty the output.
    seed None takes a random one; choice i of n draws with its own stream of the same seed.
    stop: strings that end the text and are cut from it (kept with include_stop_str_in_output).
    logits_processors: names in EngineOptions.logits_processors, each with the arguments that it takes, plain JSON.
    logprobs k: each token's log probability and the k best, of the unprocessed logits; prompt_logprobs likewise.
    priority: smaller runs earlier; waiting requests are overtaken a bounded number of times.
    queue_timeout, first_token_timeout, total_timeout: seconds since the engine took the request, None for no limit.
    structured: what the output must be: a JsonSchema, JsonObject, Regex, Choice or Grammar. It ends by the
    end-of-sequence token, before min_tokens too where nothing else can follow.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: Sequence[int] | None = None
    bad_words: str | Sequence[str] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    queue_timeout: float | None = None
    first_token_timeout: float | None = None
    total_timeout: float | None = None
    structured: Structured | None = None
    logits_processors: dict[str, Any] = {}
    best_of: int | None = None

    def __post_init__(self) -> None:
        for name, empty in _EMPTY.items():
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, empty())
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)
        _whole("n", self.n, 1, 1024)
        if self.best_of is not None:
            _whole("best_of", self.best_of, self.n, 1024)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidOption("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        _number("temperature", self.temperature, 0.0, 1e4)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _whole("top_k", self.top_k, 0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        if self.seed is not None:
            _whole("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        self._freeze_strings("stop", _MOST_STOP)
        self._freeze_strings("bad_words", _MOST_BAD_WORDS)
        self._freeze_ids("stop_token_ids")
        if self.allowed_token_ids is not None:
            self._freeze_ids("allowed_token_ids")
            if not self.allowed_token_ids:
                raise InvalidOption("allowed_token_ids", (), "None or at least one token id")
        _flag("ignore_eos", self.ignore_eos)
        _flag("include_stop_str_in_output", self.include_stop_str_in_output)
        _flag("skip_special_tokens", self.skip_special_tokens)
        if not isinstance(self.logit_bias, dict):
            raise InvalidOption("logit_bias", self.logit_bias, "a dict of token id to bias")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias key", token, 0, (1 << 31) - 1)
            _number(f"logit_bias[{token}]", bias, -100.0, 100.0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MAX_LOGPROBS)
        _whole("priority", self.priority, -(1 << 31), (1 << 31) - 1)
        for name in ("queue_timeout", "first_token_timeout", "total_timeout"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0.0, above=True)
        if self.structured is not None:
            if not isinstance(self.structured, Structured):
                kinds = "None, a JsonSchema, JsonObject, Regex, Choice or Grammar"
                raise InvalidOption("structured", self.structured, kinds)
            if self.ignore_eos:
                raise InvalidOption("ignore_eos", True, "False with structured: such an output ends by that token")
        self._check_processors()

    def _check_processors(self) -> None:
        asked = self.logits_processors
        if not isinstance(asked, dict) or not all(isinstance(name, str) for name in asked):
            raise InvalidOption("logits_processors", asked, "a dict of name to arguments")
        try:
            msgspec.json.encode(asked)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidOption("logits_processors", asked, f"arguments of plain JSON: {error}") from None

    def _freeze_strings(self, name: str, most: int) -> None:
        value: Any = getattr(self, name)
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
            raise InvalidOption(name, value, "a non-empty string or a list of them")
        if (size := sum(map(len, strings))) > most:
            raise InvalidOption(name, f"{size} characters", f"at most {most} in all strings together")
        msgspec.structs.force_setattr(self, name, tuple(strings))

    def _freeze_ids(self, name: str) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, (list, tuple)):
            raise InvalidOption(name, value, "a list of token ids")
        for token in value:
            _whole(name, token, 0, (1 << 31) - 1)
        msgspec.structs.force_setattr(self, name, tuple(value))


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the engine process runs. None means: decided by the engine from the model and the machine, told in Ready.

    model: a local folder, a GGUF file, or a hub id (with `revision`). tokenizer: the same, where it is not the model's.
    chat_template: None takes the checkpoint's own, else its family's documented one where the checkpoint shows that it
    was trained on chats; otherwise a format's name ("vicuna", "chatml", ...; the error of an unknown one lists all),
    the name of one of several that the checkpoint has ("rag"), a Jinja file, or a template itself.
    dtype: of weights and cache; "auto" is bfloat16 where the machine has it in hardware and the checkpoint is not
    float32 on purpose, else float32.
    device: "cpu", "cuda" (the first GPU that can be used) or "cuda:1"; "auto" takes a GPU where one can be used, else
    the CPU (the log says why).
    quantization: None runs a checkpoint as it is stored (a GGUF file's Q8_0, Q4_0 and Q4_1 included); a scheme's name
    ("int4", "int8", "llm_int8", "none"), its short form ("int4:g64,symmetric") or a `Quantization` quantises float
    weights at load.
    quantized_cache: folder where what was quantised at load is kept for the next start; "auto" is octavo/quantized in
    the user's cache folder, None keeps nothing.
    max_model_len: longest prompt plus output, tokens. max_num_seqs: sequences in one step.
    max_num_batched_tokens: tokens in one step; long prompts are cut in chunks of at most that.
    page_size: tokens a page of the KV cache. kv_cache_memory: its bytes; None: on a CPU what max_num_seqs sequences
    could fill, but a quarter of the memory at most; on a GPU what is left after the weights and the largest step, both
    measured. gpu_memory_utilization: share of the memory that is free when the engine starts which it may take in all.
    kv_cache_dtype: "auto" is dtype; "int8", and on a GPU "fp8" (e4m3), keep a scale a token and head.
    dynamic_ntk_growth: a sequence beyond the trained length of a model with dynamic NTK (LLaMA's rope type "dynamic",
    InternLM) is rotated for its length, and computed again for its new one when it has grown by more than this share;
    0: at every token, for the very tokens of a whole forward over all before, at its price.
    batch_invariant: on a GPU, multiply by float weights too so that outputs don't depend on what else is in the batch;
    slower. On a CPU they never do. By weights of 4 and 8 bits they don't either, but for steps of 384 tokens and more
    with activations in floats, which take cuBLAS unless this is set.
    max_queued_requests, max_queued_tokens: beyond these waiting, a request is refused at once with `Overloaded`.
    enable_lora: linear layers take LoRA adapters, chosen a request by name. max_loras: loaded at a time; max_lora_rank:
    of any; on a GPU the memory for so many of that rank is taken at the start. loras: a name -> a folder (or hub id) to
    load at the start; implies enable_lora.
    logits_processors: a name -> "package.module:factory" (or "path/to/file.py:factory"), imported in the engine's
    process, by the path of the host that spawns it, too; what it is: octavo_engine.execution.processors.
    num_threads: of the CPU kernels, 0 for all cores that the process and its control groups may use. seed: for requests
    without one; None: random.
    ready_timeout, shutdown_timeout: seconds until a spawned engine must be ready, and until it is killed at close.
    max_grammar_bytes: of what SamplingParams.structured may hold, as text. grammar_timeout: seconds that compiling it
    may take. grammar_cache_size: compiled grammars kept for the next request, besides those in use, of no more text
    than 4 * max_grammar_bytes.
    heartbeat_timeout: seconds without a sign of life, while anything is in flight, until all of that fails with
    `EngineUnresponsive`. The engine is asked for one every quarter of it, between two steps: keep it above the longest.
    speculation: guess tokens ahead, with the same output: NGram(...), Draft(model, ...), or as words "ngram",
    "ngram:num_speculative_tokens=5,prompt_lookup_max=3", "draft:MODEL". None: no.
    """

    model: str = ""
    tokenizer: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | Quantization | None = None
    quantized_cache: str | None = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    page_size: int = 16
    kv_cache_memory: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_dtype: str = "auto"
    batch_invariant: bool = False
    enable_prefix_caching: bool = True
    max_queued_requests: int = 4096
    max_queued_tokens: int = 8 << 20
    enable_lora: bool = False
    max_loras: int = 8
    max_lora_rank: int = 64
    loras: dict[str, str] = {}
    logits_processors: dict[str, str] = {}
    num_threads: int = 0
    seed: int | None = None
    ready_timeout: float = 120.0
    shutdown_timeout: float = 5.0
    heartbeat_timeout: float = 60.0
    max_grammar_bytes: int = 1 << 20
    grammar_timeout: float = 30.0
    grammar_cache_size: int = 64
    speculation: NGram | Draft | str | None = None
    dynamic_ntk_growth: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise InvalidOption("model", self.model, "a path, a GGUF file or a hub id, as a string")
        for name in ("tokenizer", "revision", "chat_template"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidOption(name, value, "None or a non-empty string")
        _flag("trust_remote_code", self.trust_remote_code)
        _choice("dtype", self.dtype, ("auto", "bfloat16", "float32", "float16"))
        if not isinstance(self.device, str) or re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is None:
            raise InvalidOption("device", self.device, "'auto', 'cpu', 'cuda' or 'cuda:N', N the number of a GPU")
        if isinstance(self.quantization, str):
            Quantization.parse(self.quantization)
        elif self.quantization is not None and not isinstance(self.quantization, Quantization):
            raise InvalidOption("quantization", self.quantization, "None, a scheme's name or a Quantization")
        if self.quantized_cache is not None and (not isinstance(self.quantized_cache, str) or not self.quantized_cache):
            raise InvalidOption("quantized_cache", self.quantized_cache, "None, 'auto' or a folder")
        if self.max_model_len is not None:
            _whole("max_model_len", self.max_model_len, 1, (1 << 31) - 1)
        _whole("max_num_seqs", self.max_num_seqs, 1, 65536)
        if self.max_num_batched_tokens is not None:
            _whole("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        _whole("page_size", self.page_size, 16, 1024)
        if self.page_size % 16:
            raise InvalidOption("page_size", self.page_size, "a multiple of 16")
        if self.kv_cache_memory is not None:
            _whole("kv_cache_memory", self.kv_cache_memory, 1)
        _number("gpu_memory_utilization", self.gpu_memory_utilization, 0.0, 1.0, above=True)
        _choice("kv_cache_dtype", self.kv_cache_dtype, ("auto", "bfloat16", "float32", "float16", "int8", "fp8"))
        _flag("batch_invariant", self.batch_invariant)
        _flag("enable_prefix_caching", self.enable_prefix_caching)
        _whole("max_queued_requests", self.max_queued_requests, 1)
        _whole("max_queued_tokens", self.max_queued_tokens, 1)
        _flag("enable_lora", self.enable_lora)
        _whole("max_loras", self.max_loras, 1, 4096)
        _whole("max_lora_rank", self.max_lora_rank, 1, 512)
        if not isinstance(self.loras, dict) or not all(isinstance(x, str) and x for i in self.loras.items() for x in i):
            raise InvalidOption("loras", self.loras, "a dict of name to folder or hub id")
        if len(self.loras) > self.max_loras:
            raise InvalidOption("loras", self.loras, f"at most max_loras={self.max_loras}")
        if self.loras:
            msgspec.structs.force_setattr(self, "enable_lora", True)
        processors = self.logits_processors
        if not isinstance(processors, dict):
            raise InvalidOption("logits_processors", processors, 'a dict of name to "package.module:factory"')
        for name, path in processors.items():
            if not isinstance(name, str) or not isinstance(path, str) or re.fullmatch(r".+:[\w.]+", path) is None:
                raise InvalidOption("logits_processors", path, '"package.module:factory" or "path/to/file.py:factory"')
        _whole("num_threads", self.num_threads, 0, 1024)
        if self.seed is not None:
            _whole("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        _number("ready_timeout", self.ready_timeout, 0.0, above=True)
        _number("shutdown_timeout", self.shutdown_timeout, 0.0, above=True)
        _number("heartbeat_timeout", self.heartbeat_timeout, 0.0, above=True)
        _whole("max_grammar_bytes", self.max_grammar_bytes, 1)
        _number("grammar_timeout", self.grammar_timeout, 0.0, above=True)
        _whole("grammar_cache_size", self.grammar_cache_size, 0)
        _number("dynamic_ntk_growth", self.dynamic_ntk_growth, 0.0)
        if isinstance(self.speculation, str):
            msgspec.structs.force_setattr(self, "speculation", parse(self.speculation))
        elif self.speculation is not None and not isinstance(self.speculation, (NGram, Draft)):
            raise InvalidOption("speculation", self.speculation, "None, an NGram, a Draft or the short form of one")
