"""Builders that the hybrid tests share."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from posthoc_bhpeft.hybrid import HybridConfig
from tests.hybrid.families import WITHOUT_PREFIX, Batch, single_rows, tiny_model


def small_config(name: str = "bert", **settings: Any) -> HybridConfig:
    """A hybrid with all the parts a family can take, a few weights each.

    GELU, because a dead ReLU has a gradient of exactly zero.
    """
    tokens = 0 if name in WITHOUT_PREFIX else 3
    small = {
        "task_type": "SEQ_CLS",
        "r": 2,
        "bottleneck_size": 3,
        "num_virtual_tokens": tokens,
        "adapter_activation": "gelu",
    }
    return HybridConfig(**{**small, **settings})


def fresh_hybrid(
    name: str = "bert", *, base: dict[str, Any] | None = None, **settings: Any
) -> PeftModel:
    """A hybrid just made, the same every time: B and the up-projections are zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(name, **(base or {})), small_config(name, **settings))
    return model.eval()


def live_hybrid(
    name: str = "bert", *, base: dict[str, Any] | None = None, **settings: Any
) -> PeftModel:
    """A hybrid as after training: every trainable tensor has moved."""
    model = fresh_hybrid(name, base=base, **settings)
    enliven(model)
    return model


def enliven(model: nn.Module, seed: int = 1, spread: float = 0.2) -> None:
    """Add noise to every trainable tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(spread * noise.to(parameter.dtype))


@torch.no_grad()
def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (N, C) without the labels."""
    output: torch.Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return output


def logits_row_by_row(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (N, C) with every row alone and unpadded."""
    return torch.cat([logits(model, row) for row in single_rows(batch)])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradient of a function of all logits with respect to every trainable tensor."""
    model.zero_grad()
    model(**batch).logits.square().sum().backward()
    return {n: torch.zeros(()) if p.grad is None else p.grad for n, p in trainable(model).items()}
