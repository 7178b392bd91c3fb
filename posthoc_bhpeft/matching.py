"""Does a posterior belong to a model? Blocks, trained weights and frozen weights, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block
from posthoc_bhpeft.digests import digest_of
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import CheckpointError, ModelError
from posthoc_bhpeft.posterior import read_weights

SAMPLE_SIZE = 16
"""Numbers kept of each frozen tensor, to tell one base model from another."""

PIECE = 1 << 24
"""Numbers of a tensor that are copied at once for a fingerprint."""


def check_blocks(blocks: Sequence[Block], saved: Mapping[str, Any]) -> None:
    """Raise unless a model has just the blocks that were saved.

    Raises:
        CheckpointError: Naming the first block that differs.
    """
    shapes = {name: tuple(entry["shape"]) for name, entry in saved.items()}
    found = {block.name: block.shape for block in blocks}
    if shapes == found:
        return
    different = [
        f"{name}: saved {shapes.get(name, 'none')}, model {found.get(name, 'none')}"
        for name in dict.fromkeys([*shapes, *found])
        if shapes.get(name) != found.get(name)
    ]
    raise CheckpointError(
        f"This posterior belongs to another model: {len(different)} of {len(shapes)} blocks "
        f"differ, first {different[0]}. Load it with the adapter it was saved beside."
    )


def check_weights(model: nn.Module, blocks: Sequence[Block], mean: Mapping[str, Tensor]) -> None:
    """Raise unless a model stands at a posterior's mean: exactly, in the model's own precision.

    Raises:
        CheckpointError: Naming the first block that differs.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    gone = [block.parameter for block in blocks if block.parameter not in dtypes]
    if gone:
        raise CheckpointError(
            f"The model has no {gone[0]!r} any more ({len(gone)} of {len(blocks)} blocks are "
            "gone): its adapter was deleted, or merged into the base, which merge_and_unload() "
            "does in place. Load the saved posterior again, and merge a copy.deepcopy of the model."
        )
    weights = read_weights(model, blocks)
    for block in blocks:
        now, saved = weights[block.name], mean[block.name].to(weights[block.name].device)
        dtype = dtypes[block.parameter]
        if not torch.equal(now.to(dtype), saved.to(dtype)):
            gap = float((now.double() - saved.double()).abs().max())
            raise CheckpointError(
                f"The model's weights are not those of this posterior: block {block.name!r} "
                f"differs by up to {gap:.3g}. It was trained on since, or is another adapter of "
                "the same shape."
            )


def frozen_samples(model: nn.Module) -> dict[str, Tensor]:
    """A few evenly spaced numbers of each frozen tensor, float32 on the CPU.

    A head that peft's `modules_to_save` replaced is left out: it is random and takes no part.
    """
    samples = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not takes_part(name, parameter):
            continue
        flat = parameter.detach().flatten()
        step = max(len(flat) // SAMPLE_SIZE, 1)
        samples[name] = flat[::step][:SAMPLE_SIZE].float().cpu().clone()
    return samples


def takes_part(name: str, tensor: Tensor) -> bool:
    """Whether a tensor's numbers say something about the model; those in a few bits do not."""
    return ".original_module." not in name and tensor.is_floating_point() and tensor.numel() > 0


def weights_digest(model: nn.Module) -> str:
    """A fingerprint of every trained number, and of a few of the others."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return digest_of([trained, frozen_samples(model)])


def whole_digest(model: nn.Module) -> str:
    """A fingerprint of every number, frozen ones too: seconds for billions of them."""
    digest = ""
    for name, tensor in kept_tensors(model):
        if takes_part(name, tensor):
            # In pieces: each is copied, and an embedding may be gigabytes.
            for piece in tensor.detach().flatten().split(PIECE):
                digest = digest_of([name, piece], digest)
    return digest


def kept_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that a checkpoint would have: others are made anew from these."""
    yield from model.named_parameters()
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{place}.{name}", buffer


def numbers_set(model: nn.Module) -> dict[str, float]:
    """What modules compute with beside tensors, by name: a LoRA's scaling, the epsilon of a norm.

    Dropout is left out, for a fit has none.
    """
    return {
        f"{place}.{name}.{key}": number
        for place, module in model.named_modules()
        if "Dropout" not in type(module).__name__
        for name, value in vars(module).items()
        if "drop" not in name
        for key, number in (value if isinstance(value, dict) else {"": value}).items()
        if isinstance(number, float)
    }


def check_same_everywhere(model: nn.Module, processes: Processes) -> None:
    """Raise if the processes of a fit hold different weights.

    Raises:
        ModelError: Naming the processes that differ from the first.
    """
    found = processes.gather(weights_digest(model) if processes.size > 1 else "")
    other = [rank for rank, digest in enumerate(found) if digest != found[0]]
    if other:
        raise ModelError(
            f"Processes {other} hold other weights than process 0, so their curvatures are not "
            "about one model. Load the same checkpoint in each; a new head is random, and each "
            "process needs the same seed for it."
        )


def check_frozen(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Raise if frozen weights differ by more than half precision would make them.

    Raises:
        CheckpointError: Naming the first tensor that differs.
    """
    now = frozen_samples(model)
    for name, sample in saved.items():
        # Quantised models hold other tensors under these names: those cannot be compared.
        if name not in now or now[name].shape != sample.shape:
            continue
        if not torch.allclose(now[name], sample, rtol=1e-2, atol=1e-3 * float(sample.abs().max())):
            raise CheckpointError(
                f"The model below the adapter is not the one of this posterior: its frozen tensor "
                f"{name!r} has other values. Load the base model that the adapter was trained on; "
                "if this tensor is a head, save it with the adapter (modules_to_save)."
            )
