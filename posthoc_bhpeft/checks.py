"""What is looked at before the long work of `bayesianize`: the arguments, and every label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.architectures import LANGUAGE_MODELS
from posthoc_bhpeft.batches import (
    Inputs,
    LabelSummary,
    Loader,
    check_labelled,
    device_of,
    evaluating,
    forward,
    move,
    summarize,
)
from posthoc_bhpeft.curvature.resuming import Probe
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.shards import processes_of
from posthoc_bhpeft.tasks import base_of

ROLES = {
    "likelihood": ("nll", "Categorical()"),
    "curvature": ("accumulator", "KroneckerGGN()"),
    "prior": ("choose", "MarginalLikelihood()"),
    "predictive": ("predict", "Linearized()"),
}
"""Of each argument: the method that makes one, and an example."""


def check_arguments(model: Any, **settings: Any) -> None:
    """Raise if the model is no plain module, or a setting is no object of its role.

    Raises:
        ModelError: If `model` is no module, or one that copies or recompiles another.
        ConfigError: If a setting is a string, a class, or an object of another role.
    """
    if not isinstance(model, nn.Module):
        hint = " Pass trainer.model." if hasattr(model, "train_dataset") else ""
        raise ModelError(
            f"The first argument must be a torch.nn.Module, got {type(model).__name__}.{hint} Load "
            "one with AutoModelForSequenceClassification or PeftModel.from_pretrained."
        )
    for attribute in ("module", "_orig_mod"):
        if is_wrapper(model, attribute):
            raise ModelError(
                f"{type(model).__name__} wraps the model, and gradients a row are taken from the "
                f"model itself. Pass model.{attribute}, or accelerator.unwrap_model(model)."
            )
    check_whole(model)
    for name, value in settings.items():
        check_role(name, value)


def check_whole(model: nn.Module) -> None:
    """Raise if weights are spread over processes, or not on any device.

    Raises:
        ModelError: Naming the first of them, and how to load the model instead.
    """
    way_out = (
        "save the adapter, and load it on the base anew in each process: several processes then "
        "share the rows, and device_map='auto' spreads a base over the devices of one"
    )
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ModelError(
                f"{name or 'The model'!r} is sharded by FSDP, so that no process holds its weights "
                f"or its activations whole. To fit, {way_out} (docs/devices.md)."
            )
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id"):
            raise ModelError(
                f"{name!r} is sharded over processes (FSDP, DeepSpeed ZeRO-3 or tensor "
                f"parallelism). To fit, {way_out} (docs/devices.md)."
            )
        if parameter.is_meta:
            raise ModelError(
                f"{name!r} is on no device: it was offloaded to the CPU or a disk by its "
                "device_map, or never loaded. Gradients a row would fetch it for every batch. Let "
                "the device_map have all the memory there is (max_memory=...), load in a smaller "
                "dtype, or fit on the CPU with device_map={'': 'cpu'}."
            )


def check_role(name: str, value: Any) -> None:
    """Raise unless a setting has the method of its role.

    Raises:
        ConfigError: If it is a string, a class, or an object of another role.
    """
    method, example = ROLES[name]
    if isinstance(value, type) or not hasattr(value, method):
        hint = f" For a fixed number: FixedPrecision({value})." if is_number(value) else ""
        raise ConfigError(
            f"{name}={value!r} is not a {name}: an object with the method {method}() is needed, "
            f"such as {name}={example} (with its parentheses).{hint}"
        )


def is_number(value: Any) -> bool:
    """Whether a setting is a bare number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_wrapper(model: nn.Module, attribute: str) -> bool:
    """Whether a module is `DataParallel`, `DistributedDataParallel` or compiled."""
    known = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
    return type(model).__name__ in known and hasattr(model, attribute)


@dataclass(frozen=True)
class DataLook:
    """What one look through the data found.

    Attributes:
        n_rows: Rows with a label, over all processes.
        probe: What the model makes of this process's first batch.
    """

    n_rows: int
    probe: Probe


def check_data(
    model: nn.Module, loader: Loader, likelihood: Likelihood, name: str = "The loader"
) -> DataLook:
    """Every label against the outputs of one forward pass, before the long work.

    Args:
        model: Unchanged.
        loader: Read once, from its first batch to its last. A process's `Shard` may be empty.
        likelihood: Says which labels fit which outputs.
        name: Of the loader, for errors.

    Returns:
        How many rows have a label, and what the model said to the first of them.

    Raises:
        ConfigError: If the likelihood takes labels at other positions than the model does.
        DataError: If the loader is empty or read-once, or labels are missing or do not fit.
        NonFiniteError: If the outputs are NaN or infinite.
        ProcessError: If another process failed.
    """
    check_shift(model, likelihood)
    device = device_of(model)
    first: list[Tensor] = []
    probes: list[Probe] = []

    def inspect(inputs: Inputs, labels: Tensor) -> None:
        if not first:
            with evaluating(model), torch.no_grad(), explaining_memory():
                outputs = forward(model, move(inputs, device), positions=likelihood.positions)
                # Its shape alone: which choices the first row has says nothing about others.
                first.append(torch.zeros_like(outputs[:1], device="cpu"))
                probes.append(Probe.of(inputs, outputs))
        if len(labels):
            likelihood.check_labels(as_long_as(first[0], labels), labels.cpu())

    processes = processes_of(loader)
    with processes.together():
        own = summarize(loader, inspect, name)
    parts = processes.gather(own)
    summary = LabelSummary(sum(p.n_rows for p in parts), sum(p.n_ignored for p in parts))
    check_labelled(summary, name)
    return DataLook(summary.n_rows, probes[0] if probes else Probe())


def check_shift(model: nn.Module, likelihood: Likelihood) -> None:
    """Raise if labels at every position would be judged by the output before or after theirs.

    Raises:
        ConfigError: Naming the likelihood that is meant.
    """
    name, moved = type(base_of(model)).__name__, getattr(likelihood, "shift", None)
    causal = name.endswith(LANGUAGE_MODELS)
    other = name.endswith(("ForTokenClassification", "ForConditionalGeneration"))
    if moved is False and causal:
        raise ConfigError(
            f"{name} predicts the next token, and its labels are its input ids, not yet shifted. "
            "Pass likelihood=Tokens(shift=True)."
        )
    if moved is True and other:
        raise ConfigError(
            f"{name} has a label for every output, in its place. Pass likelihood=Tokens()."
        )


def as_long_as(outputs: Tensor, labels: Tensor) -> Tensor:
    """One row's outputs `(1, ..., C)` repeated in the shape that fits labels `(N, ...)`.

    Texts are as long as the longest of their batch, so those of the first say nothing about others.
    """
    positions = labels.shape[1:2] if outputs.dim() == 3 else ()
    return outputs.flatten(0, -2)[0].expand(len(labels), *positions, -1)
