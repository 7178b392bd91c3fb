"""Peaks of resident memory, as the kernel keeps them (Linux), in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def resident(name: str) -> float:
    """A line of the kernel's record of this process, in MiB: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def peak_of(run: Callable[[], Result]) -> tuple[Result, float]:
    """What `run` returns, and the most memory of the process while it ran, in MiB."""
    gc.collect()
    # Writing 5 there resets the peak that the kernel keeps.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return run(), resident("VmHWM")


def rise(run: Callable[[], object]) -> float:
    """By how much memory rises during one call, at its peak, in MiB."""
    gc.collect()
    before = resident("VmRSS")
    _, peak = peak_of(run)
    return peak - before


def in_process(script: str, *arguments: str) -> Any:
    """What a script prints as JSON, run in a fresh process that returns freed memory at once.

    Without the variables of the C library, what is measured is what it holds back.
    """
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])
