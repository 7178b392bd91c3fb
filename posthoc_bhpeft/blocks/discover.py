"""`discover(model)`: every trainable tensor as blocks, or an error that names what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from posthoc_bhpeft.blocks.adalora import adalora_blocks
from posthoc_bhpeft.blocks.adapters import inactive_tensors, tuner_family
from posthoc_bhpeft.blocks.block import Block, Recognizer
from posthoc_bhpeft.blocks.conv1d import conv1d_blocks
from posthoc_bhpeft.blocks.dora import dora_blocks
from posthoc_bhpeft.blocks.embedding import lora_embedding_blocks, trained_token_blocks
from posthoc_bhpeft.blocks.hidden import check_adapters_visible
from posthoc_bhpeft.blocks.ia3 import ia3_blocks
from posthoc_bhpeft.blocks.linear import linear_blocks
from posthoc_bhpeft.blocks.norm import layer_norm_blocks, rms_norm_blocks
from posthoc_bhpeft.blocks.prefix import hybrid_prefix_blocks, peft_prefix_blocks
from posthoc_bhpeft.blocks.prompt import prompt_blocks
from posthoc_bhpeft.blocks.prompts import check_prompts
from posthoc_bhpeft.blocks.replayed import replayed_blocks
from posthoc_bhpeft.blocks.targeted import target_parameter_blocks
from posthoc_bhpeft.blocks.vera import vera_blocks
from posthoc_bhpeft.errors import ModelError, NothingTrainableError, UnclaimedParameterError

DEFAULT_RECOGNIZERS: tuple[Recognizer, ...] = (
    linear_blocks,
    hybrid_prefix_blocks,
    peft_prefix_blocks,
    prompt_blocks,
    layer_norm_blocks,
    rms_norm_blocks,
    conv1d_blocks,
    lora_embedding_blocks,
    trained_token_blocks,
    target_parameter_blocks,
    dora_blocks,
    adalora_blocks,
    ia3_blocks,
    vera_blocks,
    replayed_blocks,
)


def discover(
    model: nn.Module, recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS
) -> tuple[Block, ...]:
    """Find every trainable tensor of a model as `(p, q)` blocks.

    Adapters that are loaded but not active are left out. What a module has claimed is not offered
    to those inside it, since a container knows how its parts are used.

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
    check_prompts(model)
    left = set(learnt_parameters(model, remove_duplicate=False))
    if not left:
        raise NothingTrainableError(
            "No tensor of the model requires a gradient, so there is nothing to be uncertain "
            "about. Load the adapter with is_trainable=True, or wrap the model with get_peft_model "
            "first; after merge_and_unload() there is no adapter any more."
        )
    blocks: list[Block] = []
    for path, module in model.named_modules():
        found = [block for recognize in recognizers for block in recognize(path, module)]
        blocks += [block for block in found if block.parameter in left]
        left -= {block.parameter for block in found}
    check_coverage(model, blocks)
    return tuple(blocks)


def learnt_parameters(
    model: nn.Module, *, remove_duplicate: bool = True
) -> dict[str, nn.Parameter]:
    """Every parameter that requires a gradient and does not belong to an inactive adapter."""
    inactive = inactive_tensors(model)
    return {
        name: tensor
        for name, tensor in model.named_parameters(remove_duplicate=remove_duplicate)
        if tensor.requires_grad and id(tensor) not in inactive
    }


def check_coverage(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Raise unless blocks cover each element of each trainable tensor exactly once."""
    check_not_shared(model, blocks)
    trainable = learnt_parameters(model)
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


def check_not_shared(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Raise if a trainable tensor is used by two modules: its gradient would be counted in part."""
    owners: dict[int, dict[int, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            # One module reachable by two paths is fine; it is called, and tapped, as one.
            found = owners.setdefault(id(parameter), {})
            found.setdefault(id(holder(model, name)[1]), name)
    claimed = {block.parameter for block in blocks}
    for names in map(sorted, (found.values() for found in owners.values())):
        # What no block has is told of as unclaimed.
        if len(names) > 1 and claimed.intersection(names):
            raise ModelError(
                f"{names[0]!r} is shared by {len(names)} modules ({names}). "
                "A block belongs to one module: untie the tensors, or freeze them."
            )


def describe_unclaimed(
    model: nn.Module, names: Sequence[str], trainable: dict[str, nn.Parameter]
) -> str:
    """The message of `UnclaimedParameterError`: what is left, and the ways out."""
    shown = [f"  {name} {tuple(trainable[name].shape)} in {owner(model, name)}" for name in names]
    if len(shown) > 8:
        shown[8:] = [f"  ... and {len(names) - 8} more"]
    plural = "tensor is" if len(names) == 1 else "tensors are"
    return (
        f"{len(names)} trainable {plural} in no block:\n" + "\n".join(shown) + "\n"
        "What has blocks is listed in docs/support.md. Freeze the rest with requires_grad_(False), "
        "which leaves its uncertainty out, train with a method that is listed, or pass a "
        "recognizer of your own (docs/extending.md)."
    )


def owner(model: nn.Module, parameter: str) -> str:
    """The class of the layer that holds a parameter, and of the peft layer around it."""
    path, module = holder(model, parameter)
    tuners = [
        tuner_family(layer).__name__
        for above, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and f"{path}.".startswith(f"{above}.")
    ]
    return " of peft's ".join([type(module).__name__, *tuners[-1:]])


def holder(model: nn.Module, parameter: str) -> tuple[str, nn.Module]:
    """The layer that holds a parameter, past peft's containers, and its path."""
    path, _, _ = parameter.rpartition(".")
    module = model.get_submodule(path)
    while isinstance(module, nn.ModuleDict | nn.ParameterDict):
        path, _, _ = path.rpartition(".")
        module = model.get_submodule(path)
    return path, module
