"""From options to a Core that is ready to run: the model, a cache that fits beside it, and what works on the two.

Brings torch, which takes a second: `serve` imports it once clients can be told so.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from octavo import wire
from octavo_engine import config
from octavo_engine.adapters import AdapterStore, CannotLoad
from octavo_engine.core import Core
from octavo_engine.execution import kv_cache
from octavo_engine.execution.device import no_memory
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.pooling import embedding_size
from octavo_engine.execution.processors import CannotImport, Context, Processors, load_processors
from octavo_engine.execution.runner import Runner
from octavo_engine.greeter import Greeter, StartFailed
from octavo_engine.guessing import Guessing, OtherTokenizer
from octavo_engine.layers.lora import Adapters
from octavo_engine.machine import Machine, NoRoom
from octavo_engine.models import CheckpointMismatch, NotQuantizable, UnsupportedModel, load_model, quantization_of
from octavo_engine.ops import OpsUnavailable, load_ops
from octavo_engine.ops.eager import EagerOps
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.structured import Grammars
from octavo_engine.text import TextError, WrongOption, load_text
from octavo_engine.weights import QuantizedCache, SourceError, open_source

if TYPE_CHECKING:
    from octavo.options import EngineOptions, Quantization
    from octavo_engine.layers.rope import Regimes
    from octavo_engine.models.base import CausalLM, ModelConfig
    from octavo_engine.scheduling.speculation import Proposer
    from octavo_engine.text import Text
    from octavo_engine.weights import Source

__all__ = ["start"]

log = logging.getLogger("octavo.engine")


class _Loaded(NamedTuple):
    """What was read. dtype: of what stays in floats; adapters: where they are enabled."""

    machine: Machine
    source: Source
    text: Text
    grammars: Grammars
    network: CausalLM
    dtype: torch.dtype
    quantization: Quantization | None
    adapters: Adapters | None
    guessing: Guessing


def start(options: EngineOptions, greeter: Greeter, *, owned: bool) -> Core:
    """Load everything. Raises StartFailed for what a client has a type for, and whatever else goes wrong."""
    loaded = _load(options, greeter)
    options, num_pages, kv_dtype = _with_cache(options, loaded)
    processors = _processors(options, loaded)
    runner, proposer = _runners(options, loaded, num_pages, kv_dtype, processors, greeter)
    scheduler = Scheduler(_scheduler_config(options, loaded.network.config, num_pages, runner), proposer=proposer)
    ready = _ready(options, loaded, num_pages)
    store = _adapter_store(options, loaded, greeter)
    # What was loaded stays: keep the collector from walking it again and again.
    gc.collect()
    gc.freeze()
    greeter.hear(0)
    log.info(
        "%s ready on %s: %s, %s, %d pages of %d tokens, %d threads, %s, at %s",
        ready.architecture, options.device, options.dtype,
        loaded.quantization.describe() if loaded.quantization else "weights as stored",
        num_pages, options.page_size, options.num_threads, loaded.machine.ops.isa, greeter.mailbox.address,
    )  # fmt: skip
    return Core(
        greeter.mailbox,
        scheduler,
        runner,
        loaded.text,
        ready,
        owned=owned,
        clients=greeter.clients,
        grammars=loaded.grammars,
        adapters=store,
        processors=processors,
    )


def _load(options: EngineOptions, greeter: Greeter) -> _Loaded:
    # torch's own thread pool would only compete with the kernels', while loading and later.
    torch.set_num_threads(1)
    threads = config.resolve_threads(options.num_threads)
    try:
        machine = Machine(options.device, threads, batch_invariant=options.batch_invariant)
    except OpsUnavailable as error:
        raise StartFailed("start_failed", str(error)) from error
    try:
        source = open_source(options.model, options.revision, greeter)
        text = load_text(
            source,
            tokenizer=options.tokenizer,
            trust_remote_code=options.trust_remote_code,
            chat_template=options.chat_template,
            name=options.model,
        )
        grammars = Grammars(text, options, greeter.mailbox.wake, begin=True)
        return _load_weights(options, greeter, machine, source, text, grammars)
    except (OtherTokenizer, WrongOption) as error:
        raise StartFailed("invalid_option", str(error)) from error
    except (SourceError, UnsupportedModel, CheckpointMismatch, NotQuantizable, TextError) as error:
        raise StartFailed("model", str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        raise StartFailed("out_of_memory", str(machine.too_large(error))) from error


def _ran_out(error: Exception) -> bool:
    """Of memory, the host's or the device's."""
    return isinstance(error, MemoryError) or no_memory(error)


def _load_weights(
    options: EngineOptions, greeter: Greeter, machine: Machine, source: Source, text: Text, grammars: Grammars
) -> _Loaded:
    ops = machine.ops
    dtype = getattr(torch, config.resolve_dtype(options.dtype, source.config, ops.isa))
    quantization = quantization_of(source.checkpoint, options.quantization)
    adapters = None
    if options.enable_lora:
        adapters = Adapters(options.max_loras, ops.activation_dtype(dtype), options.max_lora_rank)
    network = load_model(
        source,
        ops,
        dtype,
        greeter,
        quantization=quantization,
        max_model_len=options.max_model_len,
        cache=_cache(options),
        trust_remote_code=options.trust_remote_code,
        adapters=adapters,
        step_tokens=machine.step_tokens(options),
    )
    if adapters is not None and adapters.nbytes:
        log.info(
            "slots of max_loras=%d adapters of max_lora_rank=%d take %.0f MB",
            options.max_loras,
            options.max_lora_rank,
            adapters.nbytes / 1e6,
        )
    guessing = Guessing.load(options, network, text, ops, dtype, greeter)
    return _Loaded(machine, source, text, grammars, network, dtype, quantization, adapters, guessing)


def _cache(options: EngineOptions) -> QuantizedCache | None:
    folder = config.quantized_folder(options.quantized_cache) if options.quantized_cache is not None else None
    return None if folder is None else QuantizedCache(folder, config.VERSION)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _with_cache(options: EngineOptions, loaded: _Loaded) -> tuple[EngineOptions, int, torch.dtype]:
    """Options with every None and "auto" resolved, the number of pages, and the dtype of what is in them."""
    machine, network = loaded.machine, loaded.network
    ops, shape = machine.ops, network.config
    automatic = options.kv_cache_dtype == "auto"
    kv_dtype = loaded.dtype if automatic else getattr(torch, _torch_name(options.kv_cache_dtype))
    if options.max_model_len is not None and options.max_model_len > shape.max_position:
        raise StartFailed(
            "invalid_option",
            f"max_model_len={options.max_model_len}: the model has positions for {shape.max_position} tokens",
        )
    try:
        page_bytes = kv_cache.page_bytes(ops, shape, options.page_size, kv_dtype)
        page_bytes += loaded.guessing.page_bytes(ops, options.page_size, kv_dtype)
    except ValueError as error:
        raise StartFailed("invalid_option", f"kv_cache_dtype={options.kv_cache_dtype}: {error}") from error
    try:
        memory = machine.cache_memory(options, network, kv_dtype, page_bytes, loaded.guessing.model, loaded.adapters)
    except NoRoom as error:
        raise StartFailed("invalid_option" if error.option else "out_of_memory", str(error)) from error
    num_pages = memory // page_bytes
    if num_pages < 1:
        raise StartFailed(
            "invalid_option", f"kv_cache_memory={memory}: one page of this model takes {page_bytes} bytes"
        )
    resolved = config.with_limits(
        options,
        max_position=shape.max_position,
        cache_tokens=num_pages * options.page_size,
        dtype=_octavo_name(loaded.dtype),
        quantization=loaded.quantization,
        max_num_batched_tokens=machine.step_tokens(options),
        device=machine.device,
        kv_cache_memory=memory,
        kv_cache_dtype=_octavo_name(kv_dtype),
        num_threads=config.resolve_threads(options.num_threads),
    )
    return resolved, num_pages, kv_dtype


def _torch_name(kv_cache_dtype: str) -> str:
    return "float8_e4m3fn" if kv_cache_dtype == "fp8" else kv_cache_dtype


def _octavo_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return "fp8" if name == "float8_e4m3fn" else name


# ---- what works on model and cache ---------------------------------------------------------------------------------


def _processors(options: EngineOptions, loaded: _Loaded) -> Processors:
    text, ops = loaded.text, loaded.machine.ops
    vocab_size, eos = loaded.network.config.vocab_size, tuple(sorted(text.eos_token_ids))
    context = Context(vocab_size, eos, lambda said: text.encode(said, False), text.decode)
    try:
        host = None
        if options.logits_processors and ops.asynchronous:
            host = load_ops("cpu", num_threads=options.num_threads)
        return Processors(load_processors(options.logits_processors, context), host)
    except CannotImport as error:
        raise StartFailed("invalid_option", str(error)) from error


def _runners(
    options: EngineOptions,
    loaded: _Loaded,
    num_pages: int,
    kv_dtype: torch.dtype,
    processors: Processors,
    greeter: Greeter,
) -> tuple[Runner, Proposer | None]:
    """Of the model, and what guesses for it."""
    network, ops = loaded.network, loaded.machine.ops
    kind = DeviceRunner if ops.asynchronous else Runner
    sizes: dict[str, Any] = {
        "num_pages": num_pages,
        "page_size": options.page_size,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "kv_dtype": kv_dtype,
        "progress": greeter,
    }
    assert options.max_num_batched_tokens is not None
    assert options.kv_cache_memory is not None
    try:
        runner = kind(
            network,
            ops if network.config.recordable else EagerOps(ops),
            **sizes,
            adapters=loaded.adapters,
            processors=processors,
        )
        proposer = loaded.guessing.proposer(kind, ops, options.max_num_batched_tokens, **sizes)
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        room = loaded.machine.too_large_beside(options.kv_cache_memory, error)
        raise StartFailed("out_of_memory", str(room)) from error
    runner.use_grammars(loaded.grammars.matcher)
    return runner, proposer


def _scheduler_config(options: EngineOptions, shape: ModelConfig, num_pages: int, runner: Runner) -> SchedulerConfig:
    assert options.max_model_len is not None
    assert options.max_num_batched_tokens is not None
    return SchedulerConfig(
        num_pages=num_pages,
        page_size=options.page_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        enable_prefix_caching=options.enable_prefix_caching,
        max_queued_requests=options.max_queued_requests,
        max_queued_tokens=options.max_queued_tokens,
        max_in_flight=2 if runner.asynchronous else 1,
        regimes=_regimes(options, shape),
    )


def _regimes(options: EngineOptions, shape: ModelConfig) -> Regimes | None:
    regimes = shape.regimes
    if regimes is None or regimes.growth is None:
        return regimes
    return regimes._replace(growth=options.dynamic_ntk_growth)


def _ready(options: EngineOptions, loaded: _Loaded, num_pages: int) -> wire.Ready:
    text, network = loaded.text, loaded.network
    return wire.Ready(
        wire.PROTOCOL_VERSION,
        os.getpid(),
        config.VERSION,
        options,
        (loaded.source.config.get("architectures") or ["?"])[0],
        text.has_tokenizer,
        text.has_chat_template,
        network.config.vocab_size,
        num_pages,
        tuple(sorted(text.eos_token_ids)),
        text.chat_template.sources[-1] if text.chat_template is not None and text.has_chat_template else None,
        embedding_size(network, loaded.machine.ops.device),
    )


def _adapter_store(options: EngineOptions, loaded: _Loaded, greeter: Greeter) -> AdapterStore:
    store = AdapterStore(loaded.adapters, options, greeter.mailbox.wake)
    for name, path in options.loras.items():
        try:
            store.load_now(name, path)
        except CannotLoad as error:
            raise StartFailed("model", f"loras[{name!r}]: {error}") from error
    return store
