"""Float64, where there is float64."""

from __future__ import annotations

from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """In float64, on its own device where that has float64 (MPS has not)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
