"""From options to a running engine: bind, load while answering Hello with Progress, then Core.run."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import wire
from octavo.options import EngineOptions, replace
from octavo_engine import config
from octavo_engine.address import BadAddress
from octavo_engine.execution.errors import DeviceLost
from octavo_engine.keys import BadKeys, curve_of
from octavo_engine.mailbox import Client, Mailbox, wrong_protocol

if TYPE_CHECKING:
    from octavo_engine.core import Core
    from octavo_engine.execution.processors import Processors
    from octavo_engine.layers.rope import Regimes
    from octavo_engine.models.base import ModelConfig
    from octavo_engine.ops import Ops
    from octavo_engine.text import Text
    from octavo_engine.weights import QuantizedCache

__all__ = ["serve"]

log = logging.getLogger("octavo.engine")

VERSION = config.VERSION

# What a lost device leaves: to free its tensors would end the process (execution.device), which ends soon anyway.
_left: list[object] = []


class StartFailed(Exception):
    """Loading failed in a way that the client has a type for: `code` as in wire.Dying."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def serve(
    address: str, options_json: str, *, model: str | None, spawned: bool, keys: dict[str, Any] | None = None
) -> int:
    """Run one engine until it is drained or signalled; the process's exit status. keys: what keys.curve_of takes."""
    try:
        curve = None
        if address.startswith("tcp://"):
            curve = curve_of(**keys or {}, variables=config.key_variables())
        elif keys:
            raise BadKeys(f"{_flags(keys)}: only for --bind tcp://host:port; who may join at {address} is the folder's")
        mailbox = Mailbox(address, lambda client, error: log.warning("a malformed frame was dropped: %s", error), curve)
        if curve is not None:
            log.info("clients join at %s", mailbox.address)
    except (BadAddress, BadKeys) as error:
        log.error("%s", error)
        return 1
    greeter = _Greeter(mailbox)
    try:
        core = _start(options_json, model, greeter, owned=spawned)
    except Exception as error:
        code = error.code if isinstance(error, StartFailed) else "start_failed"
        log.error("%s", error, exc_info=None if isinstance(error, StartFailed) else error)
        if isinstance(error, DeviceLost):
            _left.append(error)
        greeter.farewell(wire.Dying(code, str(error) or type(error).__name__))
        mailbox.close()
        return 1
    _obey_signals(core, spawned)
    try:
        core.run()
    except Exception as error:
        log.exception("the engine failed")
        if isinstance(error, DeviceLost):
            _left.extend((error, core))
        for client in greeter.clients:
            with contextlib.suppress(Exception):  # it is dying: each client gets what can still be said
                mailbox.send(client, [last_words(error)])
        return 1
    finally:
        mailbox.close()
    return 0


def _flags(keys: dict[str, Any]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in keys)


def last_words(error: Exception) -> wire.Dying:
    """What the clients are told of an error that ended the loop."""
    if isinstance(error, DeviceLost):
        return wire.Dying("device_lost", str(error))
    return wire.Dying("internal", f"{type(error).__name__}: {error}")


class _Greeter:
    """Tells the clients that say Hello how the loading goes."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.clients: set[Client] = set()

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        self.hear(0)
        for client in list(self.clients):
            if not self.mailbox.send(client, [wire.Progress(stage, done, total, text)]):
                self.clients.discard(client)

    def hear(self, timeout: float) -> None:
        for client, message in self.mailbox.receive(timeout):
            match message:
                case wire.Hello(protocol) if protocol != wire.PROTOCOL_VERSION:
                    self.mailbox.send(client, [wrong_protocol(protocol)])
                case wire.Hello():
                    self.clients.add(client)
                case wire.Drain():
                    raise StartFailed("drained", "the client closed while the model was loading")
                case wire.Goodbye():
                    self.clients.discard(client)

    def farewell(self, dying: wire.Dying) -> None:
        """The spawner's Hello may still be on its way: wait for it a moment."""
        if not self.clients:
            with contextlib.suppress(StartFailed):
                self.hear(1.0)
        for client in self.clients:
            self.mailbox.send(client, [dying])


def _options(options_json: str, model: str | None) -> EngineOptions:
    try:
        options = msgspec.json.decode(options_json, type=EngineOptions)
        if model is not None:
            options = replace(options, model=model)
    except (msgspec.DecodeError, ValueError) as error:
        raise StartFailed("invalid_option", str(error)) from error
    if not options.model:
        raise StartFailed("invalid_option", "model='': give a local folder, a GGUF file or a hub id")
    return options


def _start(options_json: str, model: str | None, greeter: _Greeter, *, owned: bool) -> Core:
    """Load everything. The imports are here so that the greeter can answer before torch is there."""
    options = _options(options_json, model)
    greeter("start", 0, 0, "importing torch")
    import torch

    from octavo_engine.adapters import AdapterStore, CannotLoad
    from octavo_engine.core import Core
    from octavo_engine.execution import kv_cache
    from octavo_engine.execution.device_runner import DeviceRunner
    from octavo_engine.execution.pooling import embedding_size
    from octavo_engine.execution.runner import Runner
    from octavo_engine.guessing import Guessing, OtherTokenizer
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.machine import Machine, NoRoom
    from octavo_engine.models import CheckpointMismatch, NotQuantizable, UnsupportedModel, load_model, quantization_of
    from octavo_engine.ops import OpsUnavailable
    from octavo_engine.ops.eager import EagerOps
    from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
    from octavo_engine.structured import Grammars
    from octavo_engine.text import TextError, WrongOption, load_text
    from octavo_engine.weights import SourceError, open_source

    threads = config.resolve_threads(options.num_threads)
    # torch's own thread pool would only compete with the kernels', while loading and later.
    torch.set_num_threads(1)
    try:
        machine = Machine(options.device, threads, batch_invariant=options.batch_invariant)
        ops = machine.ops
        source = open_source(options.model, options.revision, greeter)
        text = load_text(
            source,
            tokenizer=options.tokenizer,
            trust_remote_code=options.trust_remote_code,
            chat_template=options.chat_template,
            name=options.model,
        )
        grammars = Grammars(text, options, greeter.mailbox.wake, begin=True)
        dtype_name = config.resolve_dtype(options.dtype, source.config, ops.isa)
        dtype = getattr(torch, dtype_name)
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
    except (OtherTokenizer, WrongOption) as error:
        raise StartFailed("invalid_option", str(error)) from error
    except OpsUnavailable as error:
        raise StartFailed("start_failed", str(error)) from error
    except torch.OutOfMemoryError as error:
        raise StartFailed("out_of_memory", str(machine.too_large("the model"))) from error
    except (SourceError, UnsupportedModel, CheckpointMismatch, NotQuantizable, TextError) as error:
        raise StartFailed("model", str(error)) from error

    kv_dtype = dtype if options.kv_cache_dtype == "auto" else getattr(torch, _torch_name(options.kv_cache_dtype))
    shape = network.config
    if options.max_model_len is not None and options.max_model_len > shape.max_position:
        raise StartFailed(
            "invalid_option",
            f"max_model_len={options.max_model_len}: the model has positions for {shape.max_position} tokens",
        )
    try:
        page_bytes = kv_cache.page_bytes(ops, shape, options.page_size, kv_dtype)
        page_bytes += guessing.page_bytes(ops, options.page_size, kv_dtype)
    except ValueError as error:
        raise StartFailed("invalid_option", f"kv_cache_dtype={options.kv_cache_dtype}: {error}") from error
    try:
        memory = machine.cache_memory(options, network, kv_dtype, page_bytes, guessing.model, adapters)
    except NoRoom as error:
        raise StartFailed("invalid_option" if error.option else "out_of_memory", str(error)) from error
    num_pages = memory // page_bytes
    if num_pages < 1:
        raise StartFailed(
            "invalid_option", f"kv_cache_memory={memory}: one page of this model takes {page_bytes} bytes"
        )
    options = config.with_limits(
        options,
        max_position=shape.max_position,
        cache_tokens=num_pages * options.page_size,
        dtype=dtype_name,
        quantization=quantization,
        max_num_batched_tokens=machine.step_tokens(options),
        device=machine.device,
        kv_cache_memory=memory,
        kv_cache_dtype=_octavo_name(kv_dtype),
        num_threads=threads,
    )
    assert options.max_model_len is not None
    assert options.max_num_batched_tokens is not None
    processors = _processors(options, text, shape.vocab_size, ops, threads)
    kind = DeviceRunner if ops.asynchronous else Runner
    sizes: dict[str, Any] = {
        "num_pages": num_pages,
        "page_size": options.page_size,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "kv_dtype": kv_dtype,
        "progress": greeter,
    }
    try:
        runner = kind(
            network,
            ops if shape.recordable else EagerOps(ops),
            **sizes,
            adapters=adapters,
            processors=processors,
        )
        proposer = guessing.proposer(kind, ops, options.max_num_batched_tokens, **sizes)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise StartFailed("out_of_memory", str(machine.too_large_beside(memory, error))) from error
    runner.use_grammars(grammars.matcher)
    scheduler = Scheduler(
        SchedulerConfig(
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
        ),
        proposer=proposer,
    )
    ready = _ready(options, source, text, shape, num_pages, embedding_size(network, ops.device))
    store = AdapterStore(adapters, options, greeter.mailbox.wake)
    for name, path in options.loras.items():
        try:
            store.load_now(name, path)
        except CannotLoad as error:
            raise StartFailed("model", f"loras[{name!r}]: {error}") from error
    # What was loaded stays: keep the collector from walking it again and again.
    gc.collect()
    gc.freeze()
    greeter.hear(0)
    log.info(
        "%s ready on %s: %s, %s, %d pages of %d tokens, %d threads, %s, at %s",
        ready.architecture, machine.device, dtype_name,
        quantization.describe() if quantization else "weights as stored",
        num_pages, options.page_size, threads, ops.isa, greeter.mailbox.address,
    )  # fmt: skip
    return Core(
        greeter.mailbox,
        scheduler,
        runner,
        text,
        ready,
        owned=owned,
        clients=greeter.clients,
        grammars=grammars,
        adapters=store,
        processors=processors,
    )


def _regimes(options: EngineOptions, shape: ModelConfig) -> Regimes | None:
    regimes = shape.regimes
    if regimes is None or regimes.growth is None:
        return regimes
    return regimes._replace(growth=options.dynamic_ntk_growth)


def _processors(options: EngineOptions, text: Text, vocab_size: int, ops: Ops, threads: int) -> Processors:
    from octavo_engine.execution.processors import CannotImport, Context, Processors, load_processors
    from octavo_engine.ops import load_ops

    context = Context(vocab_size, tuple(sorted(text.eos_token_ids)), lambda said: text.encode(said, False), text.decode)
    try:
        host = load_ops("cpu", num_threads=threads) if options.logits_processors and ops.asynchronous else None
        return Processors(load_processors(options.logits_processors, context), host)
    except CannotImport as error:
        raise StartFailed("invalid_option", str(error)) from error


def _torch_name(kv_cache_dtype: str) -> str:
    return "float8_e4m3fn" if kv_cache_dtype == "fp8" else kv_cache_dtype


def _octavo_name(kv_dtype: Any) -> str:
    name = str(kv_dtype).removeprefix("torch.")
    return "fp8" if name == "float8_e4m3fn" else name


def _cache(options: EngineOptions) -> QuantizedCache | None:
    from octavo_engine.weights import QuantizedCache

    folder = config.quantized_folder(options.quantized_cache) if options.quantized_cache is not None else None
    return None if folder is None else QuantizedCache(folder, VERSION)


def _ready(
    options: EngineOptions, source: Any, text: Any, shape: Any, num_pages: int, embedding_size: int
) -> wire.Ready:
    return wire.Ready(
        wire.PROTOCOL_VERSION,
        os.getpid(),
        VERSION,
        options,
        (source.config.get("architectures") or ["?"])[0],
        text.has_tokenizer,
        text.has_chat_template,
        shape.vocab_size,
        num_pages,
        tuple(sorted(text.eos_token_ids)),
        text.chat_template.sources[-1] if text.has_chat_template else None,
        embedding_size,
    )


def _obey_signals(core: Core, spawned: bool) -> None:
    """This process is the engine's own: SIGTERM (and Ctrl-C on a terminal) end it in good order; where it has a parent,
    that one's SIGTERM alone, and only who waits for a signal is told whose it is."""

    def drain(number: int, frame: Any) -> None:
        core.ask_drain()

    def wait() -> None:
        while True:
            sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
            if sender == os.getppid():
                core.ask_drain()
            else:
                log.warning("SIGTERM from process %d is left to pid %d, which started this", sender, os.getppid())

    if spawned:
        threading.Thread(target=wait, name="octavo-sigterm", daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)
