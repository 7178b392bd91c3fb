"""Carries the input of a feed-forward to the parallel adapter at its end."""

from __future__ import annotations

from typing import Any

import torch

from posthoc_bhpeft.errors import HybridError


class Relay:
    """Holds one tensor a device from the feed-forward's first linear module to its last.

    By device, because `nn.DataParallel` runs copies of the model that share this object.
    """

    def __init__(self) -> None:
        self._held: dict[torch.device, torch.Tensor] = {}

    def put(self, value: torch.Tensor) -> None:
        """Hold the input of the feed-forward."""
        self._held[value.device] = value

    def take(self, device: torch.device) -> torch.Tensor:
        """Hand it over, once.

        Raises:
            HybridError: If nothing was put since the last call.
        """
        value = self._held.pop(device, None)
        if value is None:
            raise HybridError(
                "A parallel adapter has no input: its feed-forward ran without the module named by "
                "adapter_input_modules, or its parts are on different devices. Use "
                "adapter_placement='sequential', or set adapter_input_modules to the "
                "feed-forward's first linear module."
            )
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": {}}
