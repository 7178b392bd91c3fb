"""`discover(model)`: every trainable tensor as blocks, or an error that names what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import Block, Recognizer
from posthoc_bhpeft.blocks.hidden import check_adapters_visible
from posthoc_bhpeft.blocks.linear import linear_blocks
from posthoc_bhpeft.blocks.norm import layer_norm_blocks
from posthoc_bhpeft.blocks.prefix import hybrid_prefix_blocks, peft_prefix_blocks
from posthoc_bhpeft.errors import ModelError, NothingTrainableError, UnclaimedParameterError

DEFAULT_RECOGNIZERS: tuple[Recognizer, ...] = (
    linear_blocks,
    hybrid_prefix_blocks,
    peft_prefix_blocks,
    layer_norm_blocks,
)


def discover(
    model: nn.Module, recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS
) -> tuple[Block, ...]:
    """Find every trainable tensor of a model as `(p, q)` blocks.

    Args:
        model: A fine-tuned model; what requires a gradient is what is bayesianized.
        recognizers: Asked in this order for each module; append your own for other layers.

    Returns:
        Blocks in the order of the model's modules. Together they cover each element of each
        trainable tensor exactly once.

    Raises:
        HiddenAdapterError: If an adapter is frozen, merged or disabled.
        NothingTrainableError: If nothing requires a gradient.
        UnclaimedParameterError: If a trainable tensor is in no block.
        ModelError: If a tensor is claimed twice, or shared by two modules.
    """
    check_adapters_visible(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingTrainableError(
            "No tensor of the model requires a gradient, so there is nothing to be uncertain "
            "about. Load the adapter with is_trainable=True, or wrap the model with get_peft_model "
            "first; after merge_and_unload() there is no adapter any more."
            + describe_frozen_prefix(model)
        )
    blocks = tuple(
        block
        for path, module in model.named_modules()
        for recognize in recognizers
        for block in recognize(path, module)
    )
    check_coverage(model, blocks)
    return blocks


def check_coverage(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Raise unless blocks cover each element of each trainable tensor exactly once."""
    every_name = dict(model.named_parameters(remove_duplicate=False))
    check_not_shared(every_name, blocks)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    counts = {name: torch.zeros(p.shape, dtype=torch.int32) for name, p in trainable.items()}
    for block in blocks:
        one = torch.ones(block.shape, dtype=torch.int32)
        seen = torch.zeros_like(counts[block.parameter])
        block.view.write(seen, one)
        counts[block.parameter] += seen
    unclaimed = [name for name, count in counts.items() if bool((count == 0).any())]
    if unclaimed:
        raise UnclaimedParameterError(describe_unclaimed(model, unclaimed, trainable))
    twice = [name for name, count in counts.items() if bool((count > 1).any())]
    if twice:
        raise ModelError(f"{twice[0]!r} is claimed by two blocks: two recognizers took it.")


def check_not_shared(every_name: Mapping[str, Tensor], blocks: Sequence[Block]) -> None:
    """Raise if a trainable tensor is used by two modules: its gradient would be counted in part."""
    owners: dict[int, list[str]] = {}
    for name, parameter in every_name.items():
        if parameter.requires_grad:
            owners.setdefault(id(parameter), []).append(name)
    claimed = {block.parameter for block in blocks}
    for names in owners.values():
        modules = claimed.intersection(names)
        # One module reachable by two paths is fine; it is called, and tapped, as one.
        if len(modules) > 1:
            raise ModelError(
                f"{sorted(modules)[0]!r} is shared by {len(modules)} modules ({sorted(modules)}). "
                "A block belongs to one module: untie the tensors, or freeze them."
            )


def describe_unclaimed(
    model: nn.Module, names: Sequence[str], trainable: dict[str, nn.Parameter]
) -> str:
    """The message of `UnclaimedParameterError`: what is left, and the ways out."""
    shown = [
        f"  {name} {tuple(trainable[name].shape)} in {type(owner(model, name)).__name__}"
        for name in names[:8]
    ]
    if len(names) > 8:
        shown.append(f"  ... and {len(names) - 8} more")
    plural = "tensor is" if len(names) == 1 else "tensors are"
    hint = ""
    projected = any(getattr(module, "prefix_projection", False) for module in model.modules())
    if projected and any("prompt_encoder" in name for name in names):
        hint = (
            "\nThis is prefix tuning with prefix_projection=True, whose network only helps "
            "training. Save the adapter and load it again: it then holds plain keys and values."
            + FROZEN_PREFIX
        )
    return (
        f"{len(names)} trainable {plural} in no block:\n" + "\n".join(shown) + hint + "\n"
        "Supported: linear layers (LoRA, adapters, heads), prefix keys and values, LayerNorm. "
        "Freeze the rest with requires_grad_(False), or pass a recognizer (docs/extending.md)."
    )


FROZEN_PREFIX = (
    " peft loads a prefix frozen and refuses is_trainable=True for it; thaw it with\n"
    "  config = model.active_peft_config; config.inference_mode = False\n"
    "  encoder = model.prompt_encoder[model.active_adapter]; encoder.requires_grad_(True)\n"
    "  encoder.prefix_projection = False"
)


def describe_frozen_prefix(model: nn.Module) -> str:
    """How to thaw peft's prompt encoder, if the model has one."""
    return FROZEN_PREFIX if hasattr(model, "prompt_encoder") else ""


def owner(model: nn.Module, parameter: str) -> nn.Module:
    """The module that holds a parameter."""
    path, _, _ = parameter.rpartition(".")
    return model.get_submodule(path)
