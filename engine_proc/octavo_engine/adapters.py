"""The LoRA adapters that are loaded, by name: read in a thread of their own, put in and taken out between two steps."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo import wire
from octavo_engine.layers.lora import AdapterMismatch, Adapters, ReadyPart
from octavo_engine.weights import SourceError
from octavo_engine.weights.adapter_file import open_adapter

if TYPE_CHECKING:
    from octavo.options import EngineOptions

__all__ = ["AdapterStore", "CannotLoad", "Loaded", "UnknownAdapter"]

log = logging.getLogger("octavo.engine")


class UnknownAdapter(Exception):
    """No adapter of that name is loaded."""


class CannotLoad(Exception):
    """An adapter can't be read, is not one for this model, or there is no room for it."""


@dataclass(frozen=True)
class Loaded:
    """number: as layers know it. salt: of its pages in the prefix cache; another one each time something is loaded."""

    info: wire.LoraInfo
    number: int
    salt: bytes


@dataclass(frozen=True)
class _Asked:
    client: Any
    request_id: int
    name: str
    path: str


class AdapterStore:
    """layers None: the engine runs without (EngineOptions.enable_lora). wake: called when a file has been read."""

    def __init__(self, layers: Adapters | None, options: EngineOptions, wake: Callable[[], None]) -> None:
        self._layers, self._options, self._wake = layers, options, wake
        self._loaded: dict[str, Loaded] = {}
        self._free = list(range(options.max_loras - 1, -1, -1))
        self._loading: set[str] = set()
        self._read: deque[tuple[_Asked, list[ReadyPart], wire.LoraInfo] | tuple[_Asked, Exception]] = deque()
        self._leaving: list[tuple[_Asked, Loaded]] = []
        self._worker: ThreadPoolExecutor | None = None
        self._count = 0

    def find(self, name: str) -> Loaded:
        """Raises UnknownAdapter."""
        found = self._loaded.get(name)
        if found is None:
            known = ", ".join(map(repr, self._loaded)) or "none"
            hint = "" if self._layers is not None else "; start the engine with EngineOptions(enable_lora=True)"
            raise UnknownAdapter(f"lora={name!r} is not loaded; loaded: {known}{hint}")
        return found

    def infos(self) -> tuple[wire.LoraInfo, ...]:
        return tuple(loaded.info for loaded in self._loaded.values())

    def load_now(self, name: str, path: str) -> None:
        """At start. Raises CannotLoad."""
        self._check(name, path)
        self._put(name, *self._prepare(name, path))

    # ---- asked for by clients ----------------------------------------------------------------------------------

    def load(self, client: Any, message: wire.LoadLora) -> wire.Loras | None:
        """The answer, or None where it comes later (see `settle`)."""
        asked = _Asked(client, message.request_id, message.name, message.path)
        try:
            if self._check(asked.name, asked.path):
                return self._answer(asked)
        except CannotLoad as error:
            return self._answer(asked, str(error))
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="octavo-adapters")
        self._loading.add(asked.name)
        self._worker.submit(self._read_one, asked)
        return None

    def unload(self, client: Any, message: wire.UnloadLora) -> wire.Loras | None:
        """Its name is gone at once; the answer comes when the last request that uses it has ended (see `settle`)."""
        asked = _Asked(client, message.request_id, message.name, "")
        try:
            loaded = self.find(asked.name)
        except UnknownAdapter as error:
            return self._answer(asked, str(error))
        del self._loaded[asked.name]
        self._leaving.append((asked, loaded))
        return None

    @property
    def waiting(self) -> bool:
        """There may be something for `settle`."""
        return bool(self._read or self._leaving)

    def settle(self, used: Collection[int]) -> list[tuple[Any, wire.Loras]]:
        """Between two steps; used: the numbers that live requests run with. (client, answer) of what is done now."""
        answers = []
        while self._read:
            asked, *found = self._read.popleft()
            self._loading.discard(asked.name)
            error = found[0] if isinstance(found[0], Exception) else None
            if error is None and not self._free:
                error = self._no_room()
            if error is None:
                self._put(asked.name, *found)
            answers.append((asked.client, self._answer(asked, None if error is None else str(error))))
        for asked, loaded in [left for left in self._leaving if left[1].number not in used]:
            self._leaving.remove((asked, loaded))
            assert self._layers is not None
            self._layers.drop(loaded.number)
            self._free.append(loaded.number)
            answers.append((asked.client, self._answer(asked)))
        return answers

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)

    # ---- how ---------------------------------------------------------------------------------------------------

    def _answer(self, asked: _Asked, error: str | None = None) -> wire.Loras:
        return wire.Loras(asked.request_id, self.infos(), error)

    def _check(self, name: str, path: str) -> bool:
        """True where it is loaded already. Raises CannotLoad."""
        if self._layers is None:
            raise CannotLoad("the engine runs without adapters: start it with EngineOptions(enable_lora=True)")
        if not name:
            raise CannotLoad("name='': an adapter needs a name")
        if name in self._loaded:
            if self._loaded[name].info.path == path:
                return True
            raise CannotLoad(f"name={name!r} is taken by {self._loaded[name].info.path}; unload that first")
        if name in self._loading:
            raise CannotLoad(f"name={name!r} is being loaded")
        if not self._free:
            raise self._no_room()
        return False

    def _no_room(self) -> CannotLoad:
        names = ", ".join(self._loaded)
        return CannotLoad(f"max_loras={self._options.max_loras} adapters are loaded ({names}); unload one, or raise it")

    def _read_one(self, asked: _Asked) -> None:
        try:
            self._read.append((asked, *self._prepare(asked.name, asked.path)))
        except Exception as error:  # whatever it is ends this load, not the thread
            expected = isinstance(error, CannotLoad)
            log.log(logging.WARNING if expected else logging.ERROR, "%s", error, exc_info=None if expected else error)
            self._read.append((asked, error))
        self._wake()

    def _prepare(self, name: str, path: str) -> tuple[list[ReadyPart], wire.LoraInfo]:
        assert self._layers is not None
        try:
            file = open_adapter(path)
            if file.rank > self._options.max_lora_rank:
                raise CannotLoad(
                    f"{file.path} has rank {file.rank}; raise EngineOptions.max_lora_rank={self._options.max_lora_rank}"
                )
            parts = self._layers.prepare(file.layers)
        except (SourceError, AdapterMismatch) as error:
            raise CannotLoad(str(error)) from error
        modules = sorted({layer.module.rpartition(".")[2] for layer in file.layers})
        return parts, wire.LoraInfo(name, path, file.rank, tuple(modules))

    def _put(self, name: str, parts: list[ReadyPart], info: wire.LoraInfo) -> None:
        assert self._layers is not None
        number = self._free.pop()
        self._layers.put(number, parts)
        self._count += 1
        self._loaded[name] = Loaded(info, number, b"lora %d" % self._count)
        log.info("adapter %r: rank %d on %s, from %s", name, info.rank, ", ".join(info.modules), info.path)
