"""AdapterHub checkpoints in the words of a hybrid, read without the library `adapters`.

A folder that `model.save_adapter` wrote: LoRA, prefix tuning, bottleneck adapters, or a union of
them (https://arxiv.org/abs/2311.11077). Its tensors are named after the modules they sit in:
`...query.loras.NAME.lora_A`, `...output.adapters.NAME.adapter_down.0.weight`,
`...prefix_tunings.NAME.self_prefix.control_trans`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.interop.adapterhub_head import read_head
from posthoc_bhpeft.interop.adapterhub_parts import bottleneck, prefix
from posthoc_bhpeft.interop.source import Source, lora_part, targets_for
from posthoc_bhpeft.interop.tensors import read_tensors

WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")

_TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
_HANDLED = "LoRA, prefix tuning, bottleneck adapters without extras, and unions of them"


def adapterhub_source(
    model: PreTrainedModel, folder: Path, config: Mapping[str, Any], with_head: bool
) -> Source:
    """An adapter that AdapterHub saved.

    Args:
        model: The base model.
        folder: The checkpoint.
        config: Its adapter_config.json.
        with_head: Whether to take its head too.

    Raises:
        CheckpointError: It is not whole or does not fit the model.
        ConfigError: It uses what a hybrid does not have.
    """
    _check_base(model, folder, config)
    settings: dict[str, Any] = {"task_type": _task(model)}
    tensors: dict[str, Tensor] = {}
    stored = _stored(model, folder, str(config.get("name")))
    for part in _parts(folder, config):
        found, renamed = _read_part(model, folder, config, part, stored)
        settings |= found
        tensors |= renamed
    if stored:
        raise ConfigError(
            f"{str(folder)!r} holds {next(iter(stored))!r} and {len(stored) - 1} more tensors that "
            f"a hybrid has no place for. It takes {_HANDLED}; not invertible adapters, Compacter, "
            "gates, fusion or ReFT."
        )
    return Source(folder, settings, tensors, read_head(model, folder) if with_head else None)


def _read_part(
    model: PreTrainedModel,
    folder: Path,
    config: Mapping[str, Any],
    part: Mapping[str, Any],
    stored: dict[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of one part; its tensors are taken out of `stored`."""
    kind = part.get("architecture") or "bottleneck"
    if part.get("use_gating"):
        raise ConfigError(
            f"The {kind} in {str(folder)!r} has gates (use_gating, as in UniPELT), which average "
            "over padding too; a hybrid's do not, so its outputs would differ. Train the hybrid "
            "anew with gates=True."
        )
    if kind == "lora" and part.get("composition_mode", "add") == "add" and not part.get("vera_d"):
        return _lora(model, folder, part, _alpha(config, part), stored)
    if kind == "prefix_tuning":
        return prefix(model, folder, part, stored)
    if kind == "bottleneck":
        return bottleneck(model, folder, part, stored, legacy="version" not in config)
    raise ConfigError(
        f"The adapter in {str(folder)!r} is of the architecture {kind!r} "
        f"(composition_mode={part.get('composition_mode')!r}). A hybrid takes {_HANDLED}."
    )


def _lora(
    model: nn.Module,
    folder: Path,
    part: Mapping[str, Any],
    alpha: float,
    stored: dict[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for key in list(stored):
        found = re.fullmatch(r"(?P<module>.+)\.loras\.lora_(?P<side>[AB])", key)
        if found:
            pairs.setdefault(found["module"], {})[found["side"]] = stored.pop(key)
    modules = dict(model.named_modules())
    fused = [name for name in pairs if name in modules and not isinstance(modules[name], nn.Linear)]
    if fused:
        raise ConfigError(
            f"The LoRA in {str(folder)!r} is on {fused[0]!r}, a fused projection, whose parts "
            "AdapterHub adapts one by one. A hybrid has one LoRA a module; query, key and value "
            "must be modules of their own, as in BERT or Llama."
        )
    rank, tensors = lora_part(model, folder, pairs)
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": part.get("dropout", 0.0),
        "lora_target_modules": targets_for(modules, pairs, _ends(pairs)),
    }
    return settings, tensors


def _alpha(config: Mapping[str, Any], part: Mapping[str, Any]) -> float:
    """The numerator of the scale that LoRA was trained with.

    The versions before 1.1.0 of `adapters` left the scale out, so there it is r / r
    (https://github.com/adapter-hub/adapters/pull/770).
    """
    found = re.match(r"adapters\.(\d+)\.(\d+)", str(config.get("version")))
    unscaled = found is not None and (int(found[1]), int(found[2])) < (1, 1)
    return float(part["r"] if unscaled else part["alpha"])


def _ends(pairs: Mapping[str, Any]) -> list[str]:
    """The last names of the modules, such as query and value."""
    return sorted({name.rpartition(".")[2] for name in pairs})


def _parts(folder: Path, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    part = config.get("config")
    if not isinstance(part, Mapping):
        raise ConfigError(
            f"The adapter in {str(folder)!r} names its settings as {part!r} and does not hold "
            "them. Load it with the library `adapters` and save it again with save_adapter."
        )
    return list(part["configs"]) if part.get("architecture") == "union" else [part]


def _stored(model: PreTrainedModel, folder: Path, name: str) -> dict[str, Tensor]:
    """The file's tensors, by names in this model and without the adapter's name."""
    start = f"{model.base_model_prefix}."
    named = re.compile(rf"\.(adapters|loras|prefix_tunings)\.{re.escape(name)}\.")
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_tensors(folder, *WEIGHTS).items():
        # Saved from a model without a head, the names lack the first part.
        full = key if key.startswith(start) else start + key
        tensors[named.sub(r".\1.", full, count=1)] = tensor
    return tensors


def _check_base(model: PreTrainedModel, folder: Path, config: Mapping[str, Any]) -> None:
    for what in ("model_type", "hidden_size"):
        trained, here = config.get(what), getattr(model.config, what, None)
        if trained is not None and trained != here:
            raise CheckpointError(
                f"The adapter in {str(folder)!r} was trained on {config.get('model_name')!r} with "
                f"{what} {trained!r}; this base model has {here!r}. Load that base model."
            )


def _task(model: nn.Module) -> str | None:
    name = type(model).__name__
    return next((task for end, task in _TASKS.items() if name.endswith(end)), None)
