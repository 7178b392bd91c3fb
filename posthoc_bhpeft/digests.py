"""Fingerprints of tensors and of what holds them: equal to the last bit, or different."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def digest_of(value: Any, previous: str = "") -> str:
    """SHA-256, in hexadecimal, of a value and of everything whose digest came before.

    Args:
        value: Tensors, and mappings and sequences of them; anything else counts by its `repr`.
        previous: A digest to go on from, so that a sequence has one.
    """
    digest = hashlib.sha256(previous.encode())
    for part in bytes_of(value):
        digest.update(part)
    return digest.hexdigest()


def bytes_of(value: Any) -> Iterator[bytes]:
    """What a value consists of, each part after its kind and size."""
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for name in sorted(value, key=str):
            yield str(name).encode()
            yield from bytes_of(value[name])
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}".encode()
        for one in value:
            yield from bytes_of(one)
    else:
        yield repr(value).encode()
