"""AdapterHub's forward pass and files, written anew from what its documentation and code say.

`Reference` changes a tiny encoder as `adapters.init` and `add_adapter` would: its tensors get the
names that the library gives them, and its blocks compute what the library computes, step by step.
Nothing of posthoc_bhpeft is used, so it is an oracle for the import.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import get_activation

NAME = "task"

LORA: dict[str, Any] = {
    "architecture": "lora",
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "leave_out": [],
    "r": 2,
    "alpha": 6,
    "dropout": 0.0,
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "init_weights": "lora",
    "use_gating": False,
}
PREFIX: dict[str, Any] = {
    "architecture": "prefix_tuning",
    "encoder_prefix": True,
    "cross_prefix": True,
    "leave_out": [],
    "flat": True,
    "prefix_length": 3,
    "bottleneck_size": 5,
    "non_linearity": "tanh",
    "dropout": 0.0,
    "use_gating": False,
    "shared_gating": True,
}
SEQ_BN: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 8,
    "non_linearity": "relu",
    "original_ln_before": True,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "init_weights": "bert",
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "inv_adapter": None,
    "cross_adapter": False,
    "leave_out": [],
    "dropout": 0.0,
    "phm_layer": False,
}
PAR_BN: dict[str, Any] = {
    **SEQ_BN,
    "original_ln_before": False,
    "is_parallel": True,
    "scaling": 4.0,
}
#: A bottleneck after the feed-forward, before its residual.
BEFORE: dict[str, Any] = {**SEQ_BN, "original_ln_before": False, "non_linearity": "swish"}


def union(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"architecture": "union", "configs": list(parts)}


class Lora(nn.Module):
    def __init__(self, linear: nn.Linear, config: dict[str, Any]) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(config["r"], linear.in_features).double())
        self.lora_B = nn.Parameter(torch.randn(linear.out_features, config["r"]).double())
        self.scaling = config["alpha"] / config["r"]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lora_A.T @ self.lora_B.T * self.scaling


class Bottleneck(nn.Module):
    def __init__(self, width: int, config: dict[str, Any]) -> None:
        super().__init__()
        size = width // config["reduction_factor"]
        act = {"leakyrelu": nn.LeakyReLU()}.get(config["non_linearity"])
        down = nn.Linear(width, size), act or get_activation(config["non_linearity"])
        self.adapter_down = nn.Sequential(*down).double()
        self.adapter_up = nn.Linear(size, width).double()
        learned = {"learned": 1, "channel": width}.get(config["scaling"])
        scale = config["scaling"] if learned is None else nn.Parameter(torch.rand(learned).double())
        self.scaling = scale
        self.config = config

    def forward(self, hidden: Tensor, residual: Tensor, norm: nn.Module) -> Tensor:
        """`hidden` from the feed-forward, `residual` that went into it."""
        if self.config["is_parallel"]:
            adapted = hidden + self.adapter_up(self.adapter_down(residual)) * self.scaling
            return norm(adapted + residual)
        x = norm(hidden + residual) if self.config["original_ln_before"] else hidden
        adapted = self.adapter_up(self.adapter_down(x)) * self.scaling + hidden
        return norm(adapted + residual)


class Prefix(nn.Module):
    """Keys and values of all layers: flat, or from an embedding through a network."""

    def __init__(self, layers: int, width: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.tokens, self.layers = config["prefix_length"], layers
        if config["flat"]:
            numbers = self.tokens * layers * 2 * width
            self.control_trans: Any = nn.Parameter(torch.randn(numbers).double())
            return
        self.wte = nn.Embedding(self.tokens, width).double()
        inner = config["bottleneck_size"]
        self.control_trans = nn.Sequential(
            nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, layers * 2 * width)
        ).double()

    def layer(self, index: int, heads: int) -> Tensor:
        """(2, 1, H, T, d)."""
        if isinstance(self.control_trans, nn.Parameter):
            numbers = self.control_trans
        else:
            numbers = self.control_trans(self.wte(torch.arange(self.tokens)))
        states = numbers.view(1, self.tokens, 2 * self.layers, heads, -1)
        return states.permute(2, 0, 3, 1, 4)[2 * index : 2 * index + 2]


class Reference:
    """A base model changed in place by one adapter.

    Args:
        model: A tiny encoder in float64 with plain attention.
        config: What the library calls the adapter's config.
    """

    def __init__(self, model: PreTrainedModel, config: dict[str, Any], seed: int = 0) -> None:
        self.model, self.config = model, config
        self.kind = model.config.model_type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in config.get("configs", [config]):
                self._add(part)

    def _add(self, part: dict[str, Any]) -> None:
        kind = part.get("architecture")
        if kind == "prefix_tuning":
            self._add_prefix(part)
            return
        for index, layer in enumerate(self._layers()):
            if index in part["leave_out"]:
                continue
            if kind == "lora":
                self._add_lora(layer, part)
            else:
                self._add_bottleneck(layer, part)

    def _layers(self) -> nn.ModuleList:
        base = self.model.base_model
        return base.transformer.layer if self.kind == "distilbert" else base.encoder.layer

    def _attention(self, layer: nn.Module) -> nn.Module:
        return layer.attention if self.kind == "distilbert" else layer.attention.self

    def _projections(self, layer: nn.Module) -> dict[str, nn.Linear]:
        attention = self._attention(layer)
        if self.kind == "distilbert":
            return {"q": attention.q_lin, "k": attention.k_lin, "v": attention.v_lin}
        return {"q": attention.query, "k": attention.key, "v": attention.value}

    def _add_lora(self, layer: nn.Module, part: dict[str, Any]) -> None:
        for letter in part["attn_matrices"]:
            linear = self._projections(layer)[letter]
            linear.loras = nn.ModuleDict({NAME: Lora(linear, part)})
            linear.forward = MethodType(_lora_forward, linear)

    def _add_bottleneck(self, layer: nn.Module, part: dict[str, Any]) -> None:
        adapters = nn.ModuleDict({NAME: Bottleneck(self.model.config.hidden_size, part)})
        if self.kind == "distilbert":
            layer.output_adapters = nn.Module()
            layer.output_adapters.adapters = adapters
            layer.forward = MethodType(_distilbert_forward, layer)
        else:
            layer.output.adapters = adapters
            layer.output.forward = MethodType(_output_forward, layer.output)

    def _add_prefix(self, part: dict[str, Any]) -> None:
        kept = [one for i, one in enumerate(self._layers()) if i not in part["leave_out"]]
        pool = Prefix(len(kept), self.model.config.hidden_size, part)
        base = self.model.base_model
        base.prefix_tuning = nn.Module()
        base.prefix_tuning.prefix_tunings = nn.ModuleDict(
            {NAME: nn.ModuleDict({"self_prefix": pool})}
        )
        heads = self.model.config.num_attention_heads
        for index, layer in enumerate(kept):
            attention = self._attention(layer)
            names = self._projections(layer)
            attention.forward = _attention_forward(
                attention, names, lambda pool=pool, i=index: pool.layer(i, heads), heads
            )

    def save(self, folder: Path, *, head: str | None = None, safe: bool = False) -> Path:
        """Write what `model.save_adapter` writes."""
        folder.mkdir(parents=True, exist_ok=True)
        marks = [f".{box}.{NAME}." for box in ("adapters", "loras", "prefix_tunings")]
        state = {
            key: tensor.detach().clone()
            for key, tensor in self.model.state_dict().items()
            if any(mark in key for mark in marks)
        }
        base = self.model.config
        config = {
            "config": self.config,
            "hidden_size": base.hidden_size,
            "model_class": type(self.model).__name__,
            "model_name": "some-base",
            "model_type": base.model_type,
            "name": NAME,
            "version": "adapters.1.2.0",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        write_tensors(folder, state, safe, "adapter.safetensors", "pytorch_adapter.bin")
        if head == "static":
            outside = {
                key: tensor.clone()
                for key, tensor in self.model.state_dict().items()
                if not key.startswith(self.model.base_model_prefix)
            }
            write_head(folder, outside, {**config, "config": None, "name": None}, safe)
        return folder


def write_tensors(
    folder: Path, state: dict[str, Tensor], safe: bool, safe_name: str, name: str
) -> None:
    if safe:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / safe_name)
    else:
        torch.save(state, folder / name)


def write_head(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], safe: bool = False
) -> None:
    (folder / "head_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tensors(folder, state, safe, "model_head.safetensors", "pytorch_model_head.bin")


def _lora_forward(linear: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x, linear.weight, linear.bias) + linear.loras[NAME](x)


def _output_forward(output: Any, hidden: Tensor, residual: Tensor) -> Tensor:
    return output.adapters[NAME](output.dense(hidden), residual, output.LayerNorm)


def _distilbert_forward(block: Any, hidden: Tensor, attention_mask: Any = None, **kwargs: Any):
    attended, _ = block.attention(hidden, attention_mask=attention_mask, **kwargs)
    attended = block.sa_layer_norm(attended + hidden)
    adapter = block.output_adapters.adapters[NAME]
    return adapter(block.ffn(attended), attended, block.output_layer_norm)


def _attention_forward(attention: Any, names: dict[str, nn.Linear], prefix: Any, heads: int) -> Any:
    def forward(hidden: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        rows, positions, _width = hidden.shape
        query, key, value = (
            names[letter](hidden).view(rows, positions, heads, -1).transpose(1, 2)
            for letter in ("q", "k", "v")
        )
        keys, values = prefix()
        key = torch.cat([keys.expand(rows, -1, -1, -1), key], dim=2)
        value = torch.cat([values.expand(rows, -1, -1, -1), value], dim=2)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if attention_mask is not None:
            seen = attention_mask.new_zeros(rows, 1, attention_mask.shape[2], keys.shape[2])
            scores = scores + torch.cat([seen, attention_mask.expand(rows, -1, -1, -1)], dim=-1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, positions, -1)
        last = getattr(attention, "out_lin", None)
        return (mixed if last is None else last(mixed)), None

    return forward
