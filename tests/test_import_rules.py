"""The import rules of the design, read off the source: who may import what."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SDK = ROOT / "sdk" / "octavo"
ENGINE = ROOT / "engine_proc" / "octavo_engine"

# room -> the rooms it may import, besides itself
ROOMS = {
    "__main__": {"serve"},
    "quantize": {"config", "models", "ops", "weights"},
    "serve": {"address", "config", "core", "execution", "greeter", "keys", "mailbox", "start"},
    "greeter": {"mailbox"},
    "start": {
        "core",
        "adapters",
        "config",
        "greeter",
        "guessing",
        "layers",
        "machine",
        "execution",
        "models",
        "ops",
        "scheduling",
        "structured",
        "text",
        "weights",
    },
    "guessing": {"execution", "models", "ops", "scheduling", "text", "weights"},
    "core": {
        "adapters",
        "delivery",
        "deltas",
        "execution",
        "failures",
        "intake",
        "mailbox",
        "requests",
        "scheduling",
        "steps",
        "structured",
        "text",
    },
    "failures": {"adapters", "execution", "intake", "scheduling", "structured"},
    "requests": {"delivery", "mailbox"},
    "adapters": {"layers", "weights"},
    "chats": {"text"},
    "steps": {"scheduling", "execution"},
    "machine": {"config", "execution", "layers", "models", "ops"},
    "intake": {"chats", "scheduling", "execution", "text"},
    "deltas": {"delivery", "mailbox", "requests", "scheduling", "text"},
    "delivery": {"scheduling", "execution", "text", "mailbox", "adapters"},
    "keys": {"mailbox"},
    "mailbox": {"address"},
    "address": set(),
    "config": set(),
    "text": {"weights"},
    "scheduling": set(),
    "structured": {"text"},
    "execution": {"models", "layers", "ops", "weights", "scheduling", "structured"},
    "models": {"layers", "ops", "weights", "quant"},
    "layers": {"ops", "quant"},
    "quant": {"ops"},
    "weights": {"ops"},
    "ops": set(),
}
# third-party packages that only some rooms may spell
ONLY_IN = {
    "zmq": {"octavo/transport.py", "octavo_engine/mailbox.py"},
    "tvm_ffi": {"octavo_engine/ops"},
    "transformers": {"octavo_engine/text", "octavo_engine/models/fallback"},
    "huggingface_hub": {"octavo_engine/weights"},
    "llguidance": {"octavo_engine/structured"},
}
ENVIRONMENT = {"octavo/process.py", "octavo_engine/config.py"}


def files() -> list[Path]:
    return sorted([*SDK.rglob("*.py"), *ENGINE.rglob("*.py")])


def imports(path: Path) -> set[str]:
    """Absolute dotted names imported anywhere in the file, `from a import b` as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def place(path: Path) -> str:
    return str(path.relative_to(SDK.parent if path.is_relative_to(SDK) else ENGINE.parent))


def room(path: Path) -> str:
    relative = path.relative_to(ENGINE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SDK.rglob("*.py")), ids=place)
def test_the_client_imports_only_light_things(path: Path) -> None:
    allowed = {"octavo", "anyio", "msgspec", "zmq", "sniffio"} | set(sys.stdlib_module_names)
    if path.is_relative_to(SDK / "openai"):  # the extra [server]
        allowed |= {"starlette", "uvicorn", "prometheus_client", "opentelemetry"}
    if path.is_relative_to(SDK / "load"):  # of uvicorn's, in the extra [server]
        allowed |= {"h11"}
    if path == SDK / "chat" / "rich_screen.py":  # the extra [chat]
        allowed |= {"rich", "prompt_toolkit"}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


@pytest.mark.parametrize("path", sorted(ENGINE.rglob("*.py")), ids=place)
def test_the_engine_imports_of_the_client_only_wire_and_options(path: Path) -> None:
    modules = {".".join(name.split(".")[:2]) for name in imports(path) if name.split(".")[0] == "octavo"}
    assert modules <= {"octavo.wire", "octavo.options"}


@pytest.mark.parametrize("path", sorted(path for path in ENGINE.rglob("*.py") if room(path) != "__init__"), ids=place)
def test_rooms_of_the_engine(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("octavo_engine.")}
    assert used - {room(path)} <= ROOMS[room(path)]


def test_the_rules_have_no_cycle() -> None:
    seen: dict[str, int] = {}

    def visit(name: str) -> None:
        assert seen.get(name) != 1, f"cycle through {name}"
        if name not in seen:
            seen[name] = 1
            for other in ROOMS[name]:
                visit(other)
            seen[name] = 2

    for name in ROOMS:
        visit(name)


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_third_parties_are_spelled_in_their_room_only(package: str) -> None:
    users = {place(path) for path in files() if package in {name.split(".")[0] for name in imports(path)}}
    assert all(any(user.startswith(allowed) for allowed in ONLY_IN[package]) for user in users), users


def test_scheduling_is_plain_python() -> None:
    for path in (ENGINE / "scheduling").rglob("*.py"):
        third = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert third <= {"octavo", "octavo_engine", "msgspec"}, path


def test_the_environment_is_read_in_two_places() -> None:
    for path in files():
        if place(path) not in ENVIRONMENT:
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_cpu_and_cuda_sources_do_not_include_each_other() -> None:
    for side, other in (("cpu", "cuda"), ("cuda", "cpu")):
        for path in (ROOT / "csrc" / side).rglob("*.*"):
            for line in path.read_text().splitlines():
                assert not (line.lstrip().startswith("#include") and f"{other}/" in line), path
