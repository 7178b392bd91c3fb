"""peft's own LoRA and prefix checkpoints in the words of a hybrid.

LoRA is renamed, nothing else. A prefix is stored as keys and values, also where it was trained
through a projection (that network is not in the file), and for a text that starts after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.hybrid.plan import matches
from posthoc_bhpeft.interop.source import (
    Head,
    Source,
    check_head,
    incomplete,
    lora_part,
    prefix_part,
    targets_for,
)
from posthoc_bhpeft.interop.tensors import read_tensors

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

#: Fields of LoraConfig that are carried over.
_CARRIED = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "modules_to_save")
#: Those that change nothing of what is computed once the weights are there.
_NEUTRAL = (
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
    *("auto_mapping", "inference_mode", "init_lora_weights", "fan_in_fan_out", "runtime_config"),
    *("layers_to_transform", "layers_pattern", "exclude_modules", "rank_pattern"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config"),
)
#: Initialisations that leave the base model's weights alone.
_LEAVES_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def lora_source(
    model: nn.Module, folder: Path, config: Mapping[str, Any], with_head: bool
) -> Source:
    """A LoRA that peft saved.

    Args:
        model: The base model.
        folder: The checkpoint.
        config: Its adapter_config.json.
        with_head: Whether to take its head too.

    Raises:
        CheckpointError: It is not whole or does not fit the model.
        ConfigError: It uses what a hybrid does not have.
    """
    _refuse_others(folder, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in read_tensors(folder, *WEIGHTS).items():
        found = _LORA_KEY.fullmatch(key)
        if found:
            pairs.setdefault(found["module"], {})[found["side"]] = tensor
        else:
            rest[key.removeprefix("base_model.model.")] = tensor
    rank, tensors = lora_part(model, folder, pairs)
    _check_whole(model, folder, config, pairs)
    names = [name for name, _ in model.named_modules()]
    settings = {
        "task_type": config.get("task_type"),
        "r": rank,
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config.get("lora_dropout", 0.0),
        "use_rslora": config.get("use_rslora", False),
        "lora_target_modules": targets_for(names, pairs, _targets(config)),
    }
    return Source(folder, settings, tensors, _head(model, folder, config, rest, with_head))


def prefix_source(
    model: nn.Module, folder: Path, config: Mapping[str, Any], with_head: bool
) -> Source:
    """A prefix that peft saved; arguments and errors as for `lora_source`."""
    if config.get("num_transformer_submodules") == 2:
        raise ConfigError(
            f"The prefix in {str(folder)!r} is for an encoder-decoder, where peft uses one half of "
            "its keys and values and never trains the other. Train a HybridConfig instead "
            "(r=0, bottleneck_size=0)."
        )
    rest = read_tensors(folder, *WEIGHTS)
    stored = rest.pop("prompt_embeddings", None)
    if stored is None:
        raise incomplete(folder, "no tensor 'prompt_embeddings' in it")
    tokens = int(config["num_virtual_tokens"])
    tensors, targets = prefix_part(model, folder, stored, tokens)
    settings = {
        "task_type": config.get("task_type"),
        "num_virtual_tokens": tokens,
        "shift_positions": True,
        "prefix_target_modules": targets,
    }
    others = {key.removeprefix("base_model."): tensor for key, tensor in rest.items()}
    return Source(folder, settings, tensors, _head(model, folder, config, others, with_head))


def _refuse_others(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse every setting that would change the outputs and that a hybrid does not have."""
    if config.get("init_lora_weights", True) not in _LEAVES_BASE:
        raise ConfigError(
            f"The LoRA in {str(folder)!r} was initialised with "
            f"init_lora_weights={config['init_lora_weights']!r}, which changes the base model's "
            "own weights. Convert it first (peft's docs: save_pretrained with "
            "path_initial_model_for_weight_conversion), then import the result."
        )
    standard = LoraConfig().to_dict()
    for name, value in config.items():
        if name in (*_CARRIED, *_NEUTRAL) or not value or value == standard.get(name):
            continue
        raise ConfigError(
            f"The LoRA in {str(folder)!r} has {name}={value!r}, which a hybrid cannot compute. It "
            "takes plain LoRA and rsLoRA with one rank and one alpha on linear modules. "
            "`bayesianize` and `bhpeft fit` may still take the checkpoint as it is."
        )


def _targets(config: Mapping[str, Any]) -> list[str] | str | None:
    """The module names as the user gave them, in an order that does not change."""
    targets = config.get("target_modules")
    return sorted(targets) if isinstance(targets, list) else targets


def _check_whole(
    model: nn.Module, folder: Path, config: Mapping[str, Any], pairs: Mapping[str, Any]
) -> None:
    """Refuse a file without the tensors of a module that its config names."""
    targets = _targets(config)
    limits = ("layers_to_transform", "exclude_modules")
    if not targets or any(config.get(name) is not None for name in limits):
        return
    for name, _ in model.named_modules():
        if _trained_whole(name, config.get("modules_to_save") or ()):
            continue
        if matches(name, targets) and name not in pairs:
            raise incomplete(folder, f"no LoRA for {name!r}, which its target_modules name")


def _head(
    model: nn.Module,
    folder: Path,
    config: Mapping[str, Any],
    rest: Mapping[str, Tensor],
    with_head: bool,
) -> Head | None:
    """What else is in the file, all of which must belong to its `modules_to_save`."""
    saved = config.get("modules_to_save") or ()
    owners = {key: _trained_whole(key, saved) for key in rest}
    strange = [key for key, owner in owners.items() if owner is None]
    if strange:
        raise CheckpointError(
            f"{str(folder)!r} holds {strange[0]!r} and {len(strange) - 1} more such tensors that a "
            "hybrid has no place for, as of LoRA on an embedding or a convolution, DoRA, or a "
            "resized vocabulary. `bayesianize` may still take the checkpoint as it is."
        )
    if not rest or not with_head:
        return None
    head = Head(tuple(dict.fromkeys(owner for owner in owners.values() if owner)), dict(rest))
    check_head(model, folder, head)
    return head


def _trained_whole(name: str, saved: Sequence[str]) -> str | None:
    """The module that a name lies in and that `modules_to_save` names, as peft reads it.

    By the end of its name, so that "classifier" is DistilBERT's "pre_classifier" too.
    """
    parts = name.split(".")
    paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((path for path in paths if path.endswith(tuple(saved))), None)
