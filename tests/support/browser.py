"""A Chromium for tests of the page: the machine's own, or Debian's, which is installed where there is none and we may.

python -m tests.support.browser prints its path. Chromium comes from the distribution, since Playwright's own download
reaches further than a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

__all__ = ["BrowserUnavailable", "browser", "chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core")
# As root a sandbox can't be set up; the rest keeps Chromium from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]


class BrowserUnavailable(Exception):
    """There is no Chromium here, and none could be installed."""


def chromium() -> str:
    """Path of a Chromium, installed through apt where it is missing and this is root. Raises BrowserUnavailable."""
    found = _find()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _find()
    if found is None:
        raise BrowserUnavailable(f"the page is tested in Chromium, and there is none of {NAMES}: {' '.join(INSTALL)}")
    return found


def _find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _install() -> None:
    print("Installing Chromium through apt (110 MB, once)", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    for command in (["apt-get", *wait, "update"], [*INSTALL, *wait]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if done.returncode:
            raise BrowserUnavailable(f"{' '.join(command)} failed: {done.stdout[-2000:]}")


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium with an empty profile, driven by Playwright."""
    path = chromium()
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield made
        made.close()


if __name__ == "__main__":
    print(chromium())
