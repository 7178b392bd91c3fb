"""The first training of a stream is the same for most methods; it is kept on disk.

What is kept is keyed by all that decides the result: the weights it starts from (which of them
are trained, and every value), settings, rows and seed. A fit with a penalty, a teacher or a loss of
its own is never taken from there, nor is any fit but a learner's first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from posthoc_bhpeft.streams.learner import Learner, Rows


class FirstFit:
    """Stands in for `learner.fit` and hands every later call on.

    Args:
        learner: its `fit` is replaced.
        folder: where trained weights are kept.
    """

    def __init__(self, learner: Learner, folder: Path) -> None:
        self._learner, self._folder = learner, folder
        self._fit = learner.fit
        self._seconds = 0.0
        learner.fit = self  # type: ignore[method-assign]

    def __call__(self, rows: Rows, *, seed: int, **others: Any) -> tuple[Mapping[str, float], ...]:
        """`Learner.fit`, or the weights it led to when it was called like this before."""
        self._learner.fit = self._fit  # type: ignore[method-assign]
        if not self._is_plain(others):
            return self._fit(rows, seed=seed, **others)
        path = self._folder / f"{self._key(rows, seed)}.safetensors"
        if path.is_file():
            self._learner.restore(load_file(path))
            with safe_open(str(path), framework="pt") as file:
                self._seconds = float(file.metadata()["seconds"])
            return ()
        before = time.process_time()
        history = self._fit(rows, seed=seed)
        self._keep(path, time.process_time() - before)
        return history

    def seconds_saved(self) -> float:
        """What the training took when it was done, if it was taken from disk; then 0."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _is_plain(self, others: Mapping[str, Any]) -> bool:
        """Whether nothing but rows and a seed was given, or what comes to the same."""
        given = {name: value for name, value in others.items() if value}
        if given.get("settings") == self._learner.settings:
            del given["settings"]
        return not given

    def _keep(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self._learner.snapshot().items()}
        # Another process may be at the same file: each writes its own, and renaming is whole.
        own = path.with_suffix(f".{os.getpid()}")
        save_file(weights, own, metadata={"seconds": str(seconds)})
        own.replace(path)

    def _key(self, rows: Rows, seed: int) -> str:
        state = hashlib.sha256()
        told = [repr(self._learner.settings), repr(self._learner.labels), str(seed)]
        told += [f"{name} {data.digest} {data.label_names}" for name, data in rows]
        state.update("\n".join(told).encode())
        for name, tensor in sorted(self._learner.snapshot().items()):
            state.update(f"{name} {tuple(tensor.shape)}".encode())
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()[:32]
