"""The English text that quality is measured on: the paragraphs of "The Debian Administrator's Handbook".

Its Debian package (GPL-2+ or CC-BY-SA-3.0) is fetched by apt into .cache/bench/ and checked by its SHA-256, as is the
text taken from it. It is never committed. Print its path:    python -m tests.bench.english
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from tests.bench.models import CACHE

__all__ = ["TextUnavailable", "english_text"]

PACKAGE, VERSION = "debian-handbook", "11.20220922"
SHA256 = "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa"
TEXT_SHA256 = "26c3ab673f661b1a89949c51dd1cd884b4d826090c33e60bd3798a5ebf815c97"
PAGES = "./usr/share/doc/debian-handbook/html/en-US/"
TARGET = CACHE / "debian-handbook.txt"


class TextUnavailable(Exception):
    """The text could not be fetched, or what came is another one."""


def english_text() -> Path:
    """Path of the text, fetched where it is missing or damaged. Raises TextUnavailable."""
    if TARGET.exists() and _sha256(TARGET.read_bytes()) == TEXT_SHA256:
        return TARGET
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="text-", dir=CACHE) as scratch:
        text = _paragraphs(_download(Path(scratch))).encode()
        if _sha256(text) != TEXT_SHA256:
            raise TextUnavailable(f"the text of {PACKAGE} has SHA-256 {_sha256(text)}, expected {TEXT_SHA256}")
        made = Path(scratch) / "text"
        made.write_bytes(text)
        os.replace(made, TARGET)
    return TARGET


def _download(folder: Path) -> Path:
    print(f"Fetching {PACKAGE} {VERSION} through apt (35 MB, once)", file=sys.stderr, flush=True)
    folder.chmod(0o755)  # apt's own user writes there
    command = ["apt-get", "download", f"{PACKAGE}={VERSION}"]
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise TextUnavailable(f"no apt-get here; give a text with --text: {error}") from error
    found = list(folder.glob("*.deb"))
    if done.returncode or len(found) != 1:
        raise TextUnavailable(
            f"{' '.join(command)} failed (`apt-get update` may help, or give a text with --text): {done.stderr.strip()}"
        )
    if _sha256(found[0].read_bytes()) != SHA256:
        raise TextUnavailable(f"{found[0].name} has SHA-256 {_sha256(found[0].read_bytes())}, expected {SHA256}")
    return found[0]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _paragraphs(package: Path) -> str:
    """A line a paragraph, page after page in the order of their names."""
    with tarfile.open(fileobj=io.BytesIO(_member(package, "data.tar.xz")), mode="r:xz") as files:
        pages = sorted(
            (m for m in files if m.name.startswith(PAGES) and m.name.count("/") == PAGES.count("/") and m.isfile()),
            key=lambda member: member.name,
        )
        lines: list[str] = []
        for page in pages:
            if page.name.endswith(".html"):
                source = files.extractfile(page)
                assert source is not None
                parser = _Paragraphs()
                parser.feed(source.read().decode())
                lines += parser.lines
    return "\n".join(lines) + "\n"


def _member(package: Path, name: str) -> bytes:
    """A .deb is an ar archive: a magic line, then members of a 60-byte header and an even number of bytes."""
    data, at = package.read_bytes(), 8
    while at < len(data):
        found, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if found.rstrip("/") == name:
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise TextUnavailable(f"{package.name} has no {name}")


class _Paragraphs(HTMLParser):
    """Text of <div class="para">, less the links written out within; whitespace as one space."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._kinds: list[str] = []  # classes of the open divs
        self._words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self._finish()
            self._kinds.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._kinds:
            self._finish()
            self._kinds.pop()

    def handle_data(self, data: str) -> None:
        if self._kinds and self._kinds[-1] == "para":
            self._words.append(data)

    def _finish(self) -> None:
        line = " ".join("".join(self._words).split())
        self._words.clear()
        if len(line) > 60:  # shorter ones are labels and list heads
            self.lines.append(line)


if __name__ == "__main__":
    print(english_text())
