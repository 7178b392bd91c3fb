"""Prompt-learning methods of peft that cannot be a block as they stand, each with its way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peft import PeftModel, PeftType
from peft.utils import ModulesToSaveWrapper
from torch import nn

from posthoc_bhpeft.blocks.adapters import adapter_tensors
from posthoc_bhpeft.errors import HiddenAdapterError, UnclaimedParameterError

BLOCKS = (PeftType.PREFIX_TUNING, PeftType.PROMPT_TUNING, PeftType.P_TUNING)
"""Those whose tensor is repeated over the rows of a batch."""

NETWORKS = ("transform", "mlp_head", "lstm_head")
"""What peft calls the network that produces a prompt while it is trained."""


def check_prompts(model: nn.Module) -> None:
    """Raise unless the active prompt of every `PeftModel` is trainable and may be a block.

    Raises:
        HiddenAdapterError: If it is frozen, or the head that was saved with it, as peft loads them.
        UnclaimedParameterError: If a network makes it, or its tensors are of another kind.
    """
    for module in model.modules():
        if isinstance(module, PeftModel) and module.active_peft_config.is_prompt_learning:
            method = PeftType(module.active_peft_config.peft_type)
            encoder = module.prompt_encoder[module.active_adapter]
            trainable = [name for name, p in encoder.named_parameters() if p.requires_grad]
            if method in BLOCKS:
                check_thawed(module, method, bool(trainable))
            if trainable:
                check_one_matrix(encoder, method, trainable)


def check_thawed(model: PeftModel, method: PeftType, trainable: bool) -> None:
    """Raise if the prompt, or after loading the head beside it, is frozen."""
    loaded = model.active_peft_config.inference_mode
    hidden = [] if trainable else [f"The prompt ({method.value})"]
    hidden += [f"The head {path!r}" for path in frozen_heads(model) if loaded]
    if hidden:
        raise HiddenAdapterError(
            f"{' and '.join(hidden)} is frozen, so its uncertainty would be left out. peft refuses "
            "is_trainable=True when it loads a prompt or a prefix, and freezes the head that was "
            "saved with it. Thaw both:\n" + THAW
        )


def check_one_matrix(encoder: nn.Module, method: PeftType, trainable: Sequence[str]) -> None:
    """Raise unless a prompt is one matrix that is there for good."""
    name = f"{type(encoder).__name__} ({method.value})"
    if method not in BLOCKS:
        raise UnclaimedParameterError(
            f"{name} makes its prompt of tensors whose gradient a row cannot be seen "
            f"({', '.join(trainable)}). Supported are prompts that are one matrix: "
            f"{', '.join(kind.value for kind in BLOCKS)}. Choose one of these, or freeze it with "
            "model.prompt_encoder.requires_grad_(False) and leave its uncertainty out."
        )
    network = next((part for part in NETWORKS if hasattr(encoder, part)), None)
    if network is not None:
        raise UnclaimedParameterError(
            f"{name} has a network ({network}) that makes its prompt. It only helps training: "
            "save_pretrained writes what it made, and that is what a posterior can be over. Save "
            "the adapter, load it again with PeftModel.from_pretrained(base, folder), and thaw the "
            "head:\n" + THAW
        )


def frozen_heads(model: PeftModel) -> Iterator[str]:
    """Paths of modules saved with the active adapter that have no trainable tensor."""
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            tensors = [t for name, t in adapter_tensors(module) if name in module.active_adapters]
            if tensors and not any(tensor.requires_grad for tensor in tensors):
                yield path


THAW = (
    "  model.set_adapter(model.active_adapter)  # the head\n"
    "  model.prompt_encoder[model.active_adapter].requires_grad_(True)"
)


def thaw_prompt(model: PeftModel) -> None:
    """Make the active prompt and the head beside it trainable, as `THAW` says."""
    model.set_adapter(model.active_adapter)
    model.prompt_encoder[model.active_adapter].requires_grad_(True)
