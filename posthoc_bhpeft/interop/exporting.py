"""The LoRA of a hybrid as a checkpoint that peft loads without us."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.folders import whole_folder
from posthoc_bhpeft.hybrid import HybridConfig
from posthoc_bhpeft.hybrid.linear import HybridLinear
from posthoc_bhpeft.interop.source import PARTS, targets_for
from posthoc_bhpeft.interop.stock import WEIGHTS

#: What peft and the hybrid put between the names of the base model's modules.
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)")
_A, _B = ".bhpeft_lora_A.weight", ".bhpeft_lora_B.weight"


def export_lora(
    model: PeftModel, folder: str | Path, *, adapter_name: str = "default", overwrite: bool = False
) -> tuple[str, ...]:
    """Write the LoRA of a hybrid, and its head, as peft's own LoRA checkpoint.

    `PeftModel.from_pretrained` loads it with no need of this package; `B A` and its scale are the
    same numbers. Adapter and prefix stay behind, with a warning: without them the model's outputs
    are other ones.

    Args:
        model: A hybrid with LoRA.
        folder: Where to; made where it does not exist.
        adapter_name: Which of the model's adapters.
        overwrite: Whether a checkpoint in the folder may be replaced.

    Returns:
        The parts that stayed behind: "adapter" and "prefix", those that there are.

    Raises:
        ConfigError: There is no LoRA, it has gates, or the folder is not empty.
    """
    config = _config_of(model, adapter_name)
    left = tuple(part for size, part in PARTS.items() if part != "LoRA" and getattr(config, size))
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = _renamed(state)
    with whole_folder(folder, overwrite=overwrite) as fresh:
        save_file(tensors, str(fresh / WEIGHTS[0]), metadata={"format": "pt"})
        _lora_config(model, config, tensors).save_pretrained(str(fresh))
    if left:
        warnings.warn(
            f"Only the LoRA and the head went to {str(folder)!r}: {' and '.join(left)} stayed "
            "behind, so that checkpoint gives other outputs than this model.",
            stacklevel=2,
        )
    return left


def _config_of(model: PeftModel, adapter_name: str) -> HybridConfig:
    configs = getattr(model, "peft_config", {})
    config = configs.get(adapter_name)
    if not isinstance(config, HybridConfig):
        kinds = {name: str(one.peft_type) for name, one in configs.items()}
        raise ConfigError(
            f"export_lora takes a hybrid; {adapter_name!r} is none (the model has {kinds}). A "
            "model with peft's own LoRA saves itself with save_pretrained."
        )
    if config.r == 0:
        raise ConfigError("This hybrid has no LoRA (r=0), so there is nothing to export.")
    if config.gates:
        raise ConfigError(
            "The LoRA of this hybrid has gates, factors that depend on the text; peft's LoRA has "
            "none. Only a hybrid trained with gates=False can be exported."
        )
    return config


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LoRA under peft's names and the head under its own."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((_A, _B)):
            name = name.replace(_A, ".lora_A.weight").replace(_B, ".lora_B.weight")
        elif ".bhpeft_" in name:
            continue
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _lora_config(model: PeftModel, config: HybridConfig, tensors: dict[str, Tensor]) -> LoraConfig:
    start, end = "base_model.model.", ".lora_A.weight"
    names = [key[len(start) : -len(end)] for key in tensors if key.endswith(end)]
    every = [_WRAPPED.sub("", name) for name, _ in model.get_base_model().named_modules()]
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft computes with any number
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules=targets_for(every, names, config.lora_target_modules),
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=any(
            isinstance(module, HybridLinear) and isinstance(module.get_base_layer(), Conv1D)
            for module in model.modules()
        ),
    )
