"""Bytes of a base that will be kept in few bits, told from one that is not yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

BLOCK = 64
"""Weights that share a scale in 4 bits; bitsandbytes has scales in float32."""

NESTED = 256
"""Scales that share a scale of their own, where they are kept in 8 bits themselves."""


def saved_bytes(model: nn.Module, quantization: Mapping[str, Any]) -> int:
    """By how much the weights of a model shrink.

    Args:
        model: With its adapters, of numbers or on the meta device, not quantised.
        quantization: Of `quantization.named_quantization`, for bitsandbytes.
    """
    skipped = set(quantization.get("llm_int8_skip_modules") or ())
    return sum(
        layer.weight.numel() * layer.weight.element_size() - _kept_bytes(layer, quantization)
        for layer in _quantised(model, skipped)
    )


def _quantised(model: nn.Module, skipped: set[str]) -> Iterator[nn.Linear | Conv1D]:
    """Frozen linear layers, but for those in modules that are skipped."""
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | Conv1D) and not module.weight.requires_grad
        if linear and not any(f".{one}." in f".{name}." for one in skipped):
            yield module


def _kept_bytes(layer: nn.Linear | Conv1D, quantization: Mapping[str, Any]) -> int:
    """Of a weight `(p, q)` and its scales: one for 64 weights in 4 bits, one an output in 8."""
    weight = layer.weight
    if quantization.get("load_in_8bit"):
        return weight.numel() + 4 * (layer.nf if isinstance(layer, Conv1D) else len(weight))
    blocks = -(-weight.numel() // BLOCK)
    nested = quantization.get("bnb_4bit_use_double_quant")
    scales = blocks + 4 * -(-blocks // NESTED) if nested else 4 * blocks
    return weight.numel() // 2 + scales
