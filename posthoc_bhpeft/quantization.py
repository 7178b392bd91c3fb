"""Bases whose frozen weights are kept in few bits: how one was quantised, told and done again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

NAMED: Mapping[str, Mapping[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
"""LLM.int8() (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339) and the NormalFloat of QLoRA
(Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), both of bitsandbytes."""

HEADS = ("lm_head", "embed_out", "score", "classifier", "classification_head", "qa_outputs")
"""Names of output layers, which stay in full precision: they are trained, or read by all."""


def named_quantization(name: str, *, dtype: str, heads: Collection[str] = ()) -> dict[str, Any]:
    """What `from_pretrained` is told to keep a base in 8 or 4 bits.

    Args:
        name: A key of `NAMED`.
        dtype: Of the base; products of 4-bit weights are computed in it.
        heads: Modules that are trained whole, beside those of `HEADS`.
    """
    skipped = sorted({*HEADS, *heads})
    chosen = {"quant_method": "bitsandbytes", **NAMED[name], "llm_int8_skip_modules": skipped}
    if name == "4bit" and dtype != "auto":
        chosen["bnb_4bit_compute_dtype"] = dtype
    return chosen


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """How the frozen weights of a model were quantised, as JSON data; `None` if they are not.

    Args:
        model: Of transformers, or around one.
    """
    found = getattr(getattr(model, "config", None), "quantization_config", None)
    if found is None:
        return None
    if isinstance(found, Mapping):
        return dict(found)
    # Types of torch become names.
    settings: dict[str, Any] = json.loads(found.to_json_string(use_diff=False))
    return settings


def loading_options(name: str, quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `from_pretrained` is told, so that a base is quantised as it was.

    Nothing where there is nothing to do: files that hold a quantised model say so themselves.

    Args:
        name: Folder or hub name of the base.
        quantization: Of `quantization_of` or `named_quantization`.

    Raises:
        OSError: If there is no config.
    """
    from transformers import PreTrainedConfig
    from transformers.quantizers.auto import AutoQuantizationConfig

    if quantization is None or "quantization_config" in PreTrainedConfig.get_config_dict(name)[0]:
        return {}
    return {"quantization_config": AutoQuantizationConfig.from_dict(dict(quantization))}
