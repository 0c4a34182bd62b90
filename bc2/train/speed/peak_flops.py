"""The peak of a device in FLOP/s: the best of short tries, kept, and raised by what beats it.

A peak that was measured while something else kept the machine busy is too low, and MFU over it
would be above 100%, which cannot be. So it is taken from several tries at several times, from
what earlier processes found on the same machine, and from every training step that beats both.
It is never lowered.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bc2.cache_folder import cache_folder
from bc2.console import note
from bc2.files import lock_directory, make_directory, replace_durably
from bc2.train.device import DTYPES, cores, cpu_model, datasheet_flops
from bc2.train.precision import Precision

#: Where a peak comes from, as it is told.
MATMUL = "largest matrix product measured here"
STEP = "the fastest training step here"

#: Seconds of tries: on a machine that is not known yet, and on one whose peak was kept.
FIRST_S, AGAIN_S = 1.2, 0.3

#: Sides of the square matrices that are tried: which is fastest differs by device. Two cores are
#: a tenth faster at 512 than at 2048, and it is over before another process takes its turn.
_SIDES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384)}

#: Raised when the file of kept peaks is written another way.
_VERSION = 1


class Peak(NamedTuple):
    """What a device can do at most, as far as it is known."""

    flops: float
    """FLOP/s."""
    source: str


class KeptPeaks:
    """The peaks of this machine's devices, a JSON file that all of a user's processes share.

    It is a convenience: one that cannot be read or written is said once, and done without.

    Args:
        path: of the file; None: there is no place for it, and nothing is kept.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._said = False

    @classmethod
    def of_user(cls) -> KeptPeaks:
        """In bc2's cache: of the machine, not of a home."""
        try:
            return cls(cache_folder() / "peaks.json")
        except RuntimeError:  # a user without a home directory
            return cls(None)

    def find(self, key: str) -> Peak | None:
        """The highest peak that was seen under a key; None if none was."""
        found = self._read().get(key)
        if not isinstance(found, dict):
            return None
        flops, source = found.get("flops"), found.get("source")
        if isinstance(flops, bool) or not isinstance(flops, int | float):
            return None
        # A whole number may be larger than any float.
        if not 0 < flops <= sys.float_info.max:
            return None
        return Peak(float(flops), str(source))

    def raise_to(self, key: str, peak: Peak) -> Peak:
        """Keep a peak if it is the highest of its key.

        Returns:
            The highest: another process may have seen more.
        """
        if self.path is None:
            return peak
        try:
            make_directory(self.path.parent)
            with lock_directory(self.path.parent, wait=True):
                known = self.find(key)
                if known is not None and known.flops >= peak.flops:
                    return known
                seen = datetime.now(UTC).isoformat(timespec="seconds")
                peaks = {**self._read(), key: {**peak._asdict(), "seen": seen}}
                content = json.dumps({"version": _VERSION, "peaks": peaks}, indent=1)
                replace_durably(self.path, content.encode())
        except OSError as error:
            self._say(f"the peak cannot be kept in {self.path} ({error.strerror})")
        return peak

    def _read(self) -> Mapping[str, Any]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_bytes())
            peaks = content["peaks"] if content["version"] == _VERSION else {}
            if isinstance(peaks, dict):
                return peaks
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._say(f"the peaks kept in {self.path} cannot be read ({error.strerror})")
            return {}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        self._say(f"{self.path} holds no peaks: it is written anew")
        return {}

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            note(what)


def peak_key(device: torch.device, precision: Precision) -> str:
    """What a peak depends on: the device, the threads, the type and torch."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{cpu_model()}, {cores()} cores, {torch.get_num_threads()} threads"
    return f"{where}, {precision}, torch {torch.__version__}"


def peak_flops(device: torch.device, precision: Precision, kept: KeptPeaks | None = None) -> Peak:
    """The peak of a device: by its datasheet in bf16 if it is known, else measured.

    Args:
        kept: where peaks are kept; None: where the user's are.
    """
    kept = kept or KeptPeaks.of_user()
    key = peak_key(device, precision)
    known = kept.find(key)
    sheet = datasheet_flops(device, precision)
    if sheet is not None:
        # Only a training step says more of a known device than its maker.
        return max(Peak(*sheet), known or Peak(0.0, ""), key=lambda peak: peak.flops)
    seconds = FIRST_S if known is None else AGAIN_S
    measured = measure_matmul(device, DTYPES[precision], seconds)
    if device.type == "cuda":
        # The matrices take gigabytes, which are another process's where this one starts ranks.
        torch.cuda.empty_cache()
    return kept.raise_to(key, Peak(measured, MATMUL))


def keep_peak(
    device: torch.device, precision: Precision, peak: Peak, kept: KeptPeaks | None = None
) -> Peak:
    """Keep what a device reached, if it is more than ever before; the highest of all."""
    kept = kept or KeptPeaks.of_user()
    return kept.raise_to(peak_key(device, precision), peak)


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = FIRST_S) -> float:
    """The best FLOP/s of single products of two square matrices.

    The sizes take turns until the time is up, so that each is tried at several moments of it:
    another process seldom takes all of them.

    Args:
        seconds: for all sizes together; a size that one product of would take longer than
            its share is left out.
    """
    sides = _SIDES[device.type]
    share = seconds / len(sides)
    until = time.perf_counter() + seconds
    best, products = 0.0, []
    for side in sides:
        if best and 2 * side**3 / best > share:
            break
        products.append(_Product(device, dtype, side))
        best = max(best, products[-1].flops())
    while time.perf_counter() < until:
        for product in products:
            best = max(best, product.flops())
    return best


class _Product:
    """Two square matrices and room for their product."""

    def __init__(self, device: torch.device, dtype: torch.dtype, side: int):
        self.device, self.side = device, side
        # Random numbers: a GPU draws less power for constants, and runs faster than it ever will.
        random = torch.Generator(device).manual_seed(0)
        self.left, self.right = (
            torch.randn(side, side, device=device, generator=random).to(dtype) for _ in range(2)
        )
        self.out = self.left @ self.right

    def flops(self) -> float:
        """FLOP/s of one product."""
        _finish(self.device)
        start = time.perf_counter()
        torch.mm(self.left, self.right, out=self.out)
        _finish(self.device)
        return 2 * self.side**3 / (time.perf_counter() - start)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
