"""Parts of a base that its files do not have: trained and saved, since nobody else has them."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import nn

from posthoc_bhpeft.checkpoints import new_tensors
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.hybrid.targets import ANY_HEADS

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def saving_drawn(config: PeftConfig, base: nn.Module) -> PeftConfig:
    """A config that also trains whole what was drawn at random in a base, beside its head.

    Args:
        config: Of the adapter; not changed.
        base: Of `load_base`.
    """
    drawn = drawn_modules(base)
    if not drawn or not hasattr(config, "modules_to_save"):
        return config
    # A config that names modules is no longer asked to find the head.
    heads = [] if config.task_type else [name for name in ANY_HEADS if hasattr(base, name)]
    chosen = copy.copy(config)
    named = [*(config.modules_to_save or ()), *heads, *drawn]
    chosen.modules_to_save = list(dict.fromkeys(named))
    return chosen


def drawn_modules(base: nn.Module) -> list[str]:
    """The outermost modules of which every tensor was drawn at random."""
    drawn = new_tensors(base)
    found: list[str] = []
    for name, module in base.named_modules():
        inside = {f"{name}.{inner}" for inner, _ in module.named_parameters()}
        if name and inside and inside <= drawn and not _is_inside(name, found):
            found.append(name)
    return found


def check_drawn_are_trained(model: PeftModel, drawn: Collection[str], name: str) -> None:
    """Raise if a tensor that was drawn at random would stay as it is, and not be saved.

    Args:
        model: With its adapter.
        drawn: Of `new_tensors`, before the adapter was put on.
        name: Of the base, for the message.

    Raises:
        ConfigError: Naming the first.
    """
    trained = tuple(
        _COPY.sub("", one) for one, parameter in model.named_parameters() if parameter.requires_grad
    )
    lost = sorted(name for name in drawn if not any(one.endswith(f".{name}") for one in trained))
    if lost:
        raise ConfigError(
            f"The files of {name!r} have no {lost[0]!r} ({len(lost)} tensors are missing): it was "
            "drawn at random, and this adapter would neither train nor save it. Give a base that "
            "has it, or name its module in modules_to_save."
        )


# Where peft keeps the copy of a module that is trained whole.
_COPY = re.compile(r"\.modules_to_save\.[^.]+")


def _is_inside(name: str, others: Collection[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
