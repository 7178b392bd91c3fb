"""Progress bars, with tqdm: shown on a terminal only if the work takes more than a moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def track(batches: Iterable[Any], label: str, total: int | None, show: bool) -> Iterable[Any]:
    """Iterate with a progress bar on standard error, which appears after two seconds."""
    bar: Iterable[Any] = tqdm(
        batches, desc=label, total=total, disable=not show, delay=2, unit="batch"
    )
    return bar
