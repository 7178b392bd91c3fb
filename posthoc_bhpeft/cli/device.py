"""Where to compute."""

from __future__ import annotations

import torch

from posthoc_bhpeft.errors import ConfigError


def best_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        ConfigError: there is no such device here.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"No device {name!r} here: {reason} Use --device cpu.") from error
    return device
