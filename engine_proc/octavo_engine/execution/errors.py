"""What can go wrong with a device, as the rest of the engine knows it."""

from __future__ import annotations

__all__ = ["DeviceLost", "OutOfMemory"]


class OutOfMemory(Exception):
    """The device has not so much memory now. The step changed nothing that running it again would not change back."""


class DeviceLost(Exception):
    """The device answers no more: nothing that was computed can be had, and nothing will run on it again."""
