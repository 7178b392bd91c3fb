"""A checkpoint of another library in the words of a hybrid, checked against the base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.errors import CheckpointError, PrefixUnsupportedError
from posthoc_bhpeft.hybrid.attention import key_value_shape, takes_prefix
from posthoc_bhpeft.hybrid.layer import linear_sizes
from posthoc_bhpeft.hybrid.plan import is_linear, matches
from posthoc_bhpeft.hybrid.targets import Targets, default_targets

#: The size in `HybridConfig` that says whether a part is there.
PARTS = {"r": "LoRA", "bottleneck_size": "adapter", "num_virtual_tokens": "prefix"}


@dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
        modules: What to put into `modules_to_save`.
        tensors: By their names in the base model.
    """

    modules: tuple[str, ...]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """What one folder gives to a hybrid.

    Attributes:
        folder: Where it came from.
        settings: Fields of `HybridConfig`.
        tensors: By their names in a saved hybrid, without "base_model.model.".
        head: The trained head, if there is one.
    """

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Head | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Those it has of "LoRA", "adapter" and "prefix"."""
        return tuple(part for size, part in PARTS.items() if self.settings.get(size))


def lora_part(
    model: nn.Module, folder: Path, pairs: Mapping[str, Mapping[str, Tensor]]
) -> tuple[int, dict[str, Tensor]]:
    """Rank and hybrid tensors of LoRA.

    Args:
        model: The base model.
        folder: For errors.
        pairs: Module name -> "A" (r, q) and "B" (p, r).

    Raises:
        CheckpointError: A pair is incomplete or does not fit, or ranks differ.
    """
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    ranks: dict[int, str] = {}
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise incomplete(folder, f"LoRA at {name!r} has only its matrix {next(iter(pair))}")
        first, second = pair["A"], pair["B"]
        inputs, outputs = linear_sizes(_linear(modules, name, folder))
        fits(folder, f"A of LoRA at {name!r}", first, (first.shape[0], inputs))
        fits(folder, f"B of LoRA at {name!r}", second, (outputs, first.shape[0]))
        ranks[first.shape[0]] = name
        tensors[f"{name}.bhpeft_lora_A.weight"] = first
        tensors[f"{name}.bhpeft_lora_B.weight"] = second
    if len(ranks) != 1:
        found = ", ".join(f"{rank} at {name!r}" for rank, name in ranks.items())
        raise CheckpointError(
            f"The LoRA in {str(folder)!r} needs one rank for all modules (a hybrid has one r); got "
            f"{found or 'no module'}. Use it as it is with PeftModel.from_pretrained: "
            "`bayesianize` takes it too, without adapter and prefix."
        )
    return next(iter(ranks)), tensors


def prefix_part(
    model: nn.Module, folder: Path, stored: Tensor, tokens: int, left_out: Sequence[int] = ()
) -> tuple[dict[str, Tensor], Targets]:
    """Hybrid tensors and targets of a prefix stored as one tensor, token by token.

    Args:
        model: The base model, with L layers that take a prefix.
        folder: For errors.
        stored: T x L x 2 x H x d numbers in this order.
        tokens: T.
        left_out: Indices of layers without a prefix.

    Raises:
        CheckpointError: The sizes do not fit.
        PrefixUnsupportedError: The model takes no prefix.
    """
    modules = dict(model.named_modules())
    every = [name for name in modules if takes_prefix(modules[name])]
    if not every:
        raise PrefixUnsupportedError(
            f"{str(folder)!r} holds a prefix, and {type(model).__name__} takes none: transformers "
            "computes its attention without the attention interface. Import its other parts only."
        )
    names = [name for index, name in enumerate(every) if index not in left_out]
    shapes = {key_value_shape(modules[name]) for name in names}
    heads, size = next(iter(shapes), (0, 0))
    expected = tokens * len(names) * 2 * heads * size
    if len(shapes) != 1 or stored.numel() != expected:
        raise CheckpointError(
            f"The prefix in {str(folder)!r} has {stored.numel():,} numbers; {tokens} virtual "
            f"tokens for {len(names)} layers with {heads} key-value heads of size {size} are "
            f"{expected:,}. It was trained on another base model: load that one."
        )
    pairs = stored.detach().reshape(tokens, len(names), 2, heads, size).permute(1, 2, 3, 0, 4)
    tensors = {
        f"{name}.hybrid_prefix.bhpeft_prefix.weight": pair.contiguous()
        for name, pair in zip(names, pairs, strict=True)
    }
    known = default_targets(getattr(model.config, "model_type", None))
    return tensors, targets_for(modules, names, None if known is None else known.attention)


def targets_for(every: Iterable[str], names: Iterable[str], shorter: Targets | None) -> Targets:
    """`shorter` if it picks exactly these names of all the model's, else the names themselves."""
    if shorter and {name for name in every if matches(name, shorter)} == set(names):
        return shorter
    return sorted(names)


def check_head(model: nn.Module, folder: Path, head: Head) -> None:
    """Refuse a head that the model has no place for, or that is not whole.

    Raises:
        CheckpointError: A tensor is missing, has no place or another shape.
    """
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if any(f".{module}." in f".{name}" for module in head.modules)
    }
    other = sorted(set(head.tensors) - set(own))
    if other:
        raise CheckpointError(
            f"The head in {str(folder)!r} has {other[0]!r}, and {type(model).__name__} has no such "
            "tensor. Load the base with the class that the checkpoint was trained with, or keep "
            "the base model's own head with head_from='base'."
        )
    missing = sorted(set(own) - set(head.tensors))
    if missing:
        raise incomplete(folder, f"the head lacks {missing[0]!r}")
    for name, tensor in head.tensors.items():
        fits(folder, f"{name!r} of the head", tensor, tuple(own[name].shape))


def fits(folder: Path, what: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor of another shape.

    Raises:
        CheckpointError: See above.
    """
    if tensor.shape != torch.Size(shape):
        raise CheckpointError(
            f"{what} in {str(folder)!r} has shape {tuple(tensor.shape)}, and this base model needs "
            f"{tuple(shape)}. It was trained on a base of other sizes (or with another number of "
            "classes): load that one."
        )


def incomplete(folder: Path, what: str) -> CheckpointError:
    """The error for a checkpoint that is not whole."""
    return CheckpointError(
        f"The checkpoint in {str(folder)!r} is not whole: {what}. Copy it again."
    )


def _linear(modules: Mapping[str, nn.Module], name: str, folder: Path) -> nn.Module:
    module = modules.get(name)
    if module is None:
        raise CheckpointError(
            f"The LoRA in {str(folder)!r} changes {name!r}, and this base model has no such "
            "module. Load the base model, and the class, that it was trained with."
        )
    if not is_linear(module):
        raise CheckpointError(
            f"The LoRA in {str(folder)!r} changes {name!r}, a {type(module).__name__}. A hybrid "
            "puts LoRA on nn.Linear and transformers' Conv1D."
        )
    return module
