"""Tensors of other libraries' files, read without running anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from posthoc_bhpeft.errors import CheckpointError


def read_tensors(folder: Path, *names: str) -> dict[str, Tensor]:
    """The tensors in the first of these files that is there.

    Args:
        folder: The checkpoint.
        names: File names in the order of preference; pickles are read with `weights_only=True`.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        CheckpointError: No such file, a damaged one, or one that holds more than tensors.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{str(folder)!r} has a config and no weights: none of {', '.join(names)} is there. "
            "Copy the whole folder."
        )
    try:
        content = _load(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"{str(path)!r} could not be read: {first[0] if first else type(error).__name__}. It "
            "is cut off or damaged, or a pickle with more in it than tensors, which is never "
            "run. Copy it again, or have it saved as safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"{str(path)!r} holds a {type(content).__name__} that is no plain dict of tensors. "
            "Save the adapter's state dict itself."
        )
    return content


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)
