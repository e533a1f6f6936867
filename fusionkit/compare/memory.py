"""The most memory that a model takes on its device."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Watches memory from where it is made, which is before the model is built.

    On a GPU it is what torch allocates there. On a CPU it is the resident memory of this process
    beyond what was resident before, without the code of libraries: the system loads that as it is
    called, and every system calls the same. Other devices do not say.

    Args:
        device: Where the model will be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        _give_back()
        self._before = _resident("VmRSS") if device.type == "cpu" else 0

    def restart(self) -> None:
        """Forget the peak of building, loading and warming up, where the system allows that."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu" and _STATUS.exists():
            _give_back()
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int | None:
        """Bytes; None if the device does not say."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._device.type == "cpu" and self._before is not None:
            now = _resident("VmHWM")
            return None if now is None else max(now - self._before, 0)
        return None


def _give_back() -> None:
    """Have the C library return what it keeps for later use: that would hide what a model takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _resident(key: str) -> int | None:
    """Bytes now (``VmRSS``) or at most (``VmHWM``), without the code of libraries."""
    if _STATUS.exists():
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return None if found is None else 1024 * int(found[1]) - _library_code()
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _library_code() -> int:
    """Resident bytes of what is mapped from shared libraries and was not written to."""
    total, library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):  # the head of a mapping: range, rights, ..., path
            library = ".so" in values[-1]
        elif library and key in ("Rss:", "Anonymous:"):
            total += int(values[0]) * (1024 if key == "Rss:" else -1024)
    return total
