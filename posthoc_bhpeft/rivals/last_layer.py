"""`fit_last_layer`: Laplace over the last linear layer alone, everything below it held fixed.

Kristiadi et al. 2020 (https://arxiv.org/abs/2002.10118) and the default of laplace-torch. There the
outputs are linear in the weights, so no linearisation is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Loader, device_of, evaluating, forward, move, split_batch
from posthoc_bhpeft.blocks import Block, Kind, MatrixView
from posthoc_bhpeft.blocks.linear import observe_bias, observe_weight
from posthoc_bhpeft.checks import check_arguments, check_data
from posthoc_bhpeft.errors import ModelError
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.predictive import Link
from posthoc_bhpeft.rivals.laplace_torch import THEIR_LINK, LaplaceTorch, fit_posterior

DENSE_UP_TO = 2000
"""Weights of the layer up to which their whole `(P, P)` curvature is kept."""


def fit_last_layer(
    model: nn.Module,
    loader: Loader,
    *,
    likelihood: Likelihood = Categorical(),
    link: Link = THEIR_LINK,
    structure: str | None = None,
    progress: bool = True,
) -> LaplaceTorch:
    """Last-layer Laplace through laplace-torch; it needs the training rows and no others.

    Cost: one forward pass over the training rows, and one for a prediction; the `C` backward
    passes go through one layer only.

    Args:
        model: A trained model; unchanged. Its last layer may be frozen.
        loader: Its training data, with labels.
        likelihood: `Categorical()`, or `Gaussian()` for regression.
        link: From Gaussian logits to probabilities; laplace-torch's own by default.
        structure: Of the curvature: `"full"`, `"kron"` or `"diag"`. By default `"full"` for up to
            2000 weights, and `"kron"` above.
        progress: Show a progress bar.

    Returns:
        The fitted posterior, with the prior precision of the highest evidence.

    Raises:
        ConfigError: If laplace-torch has no counterpart of the likelihood.
        ModelError: If the outputs do not come from a linear layer.
        DataError: If the loader is empty or read-once, or labels are missing or do not fit.
    """
    check_arguments(model, likelihood=likelihood)
    check_data(model, loader, likelihood)
    blocks = last_blocks(model, next(iter(loader)))
    size = sum(block.size for block in blocks)
    chosen = structure or ("full" if size <= DENSE_UP_TO else "kron")
    return fit_posterior(
        "last-layer Laplace", model, blocks, loader, chosen, likelihood, link, progress
    )


def last_blocks(model: nn.Module, batch: Any) -> tuple[Block, ...]:
    """Weight and bias of the linear layer whose output the model returns.

    Raises:
        ModelError: If there is none: the head is no linear layer, or carries an adapter itself.
    """
    calls: list[tuple[str, Tensor]] = []
    with evaluating(model), torch.no_grad(), recording_linears(model, calls):
        inputs, _ = split_batch(batch)
        outputs = forward(model, move(inputs, device_of(model)))
    if not calls or not gives_rows(calls[-1][1], outputs):
        last = f", the last one is {calls[-1][0]!r}" if calls else ""
        raise ModelError(
            f"Last-layer Laplace needs a model that returns what its last linear layer gives{last}."
            " Here something comes after it: an adapter on the head, or a task that reads some of"
            " its outputs, such as the letters of a language model's answers. Use fit_diagonal."
        )
    path = calls[-1][0]
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    sides = (layer.out_features, layer.in_features)
    name = f"{path}.weight".lstrip(".")
    blocks = [Block(name, Kind.HEAD, name, path, MatrixView(sides), observe_weight)]
    if layer.bias is not None:
        name = f"{path}.bias".lstrip(".")
        column = MatrixView((layer.out_features, 1))
        blocks.append(Block(name, Kind.HEAD, name, path, column, observe_bias))
    return tuple(blocks)


@contextmanager
def recording_linears(model: nn.Module, calls: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Keep path and output of the linear layer that was called last."""

    def keep(path: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        calls[:] = [(path, output)]

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                handle = module.register_forward_hook(partial(keep, path))
                hooks.callback(handle.remove)
        yield


def gives_rows(layer_output: Tensor, outputs: Tensor) -> bool:
    """Whether each row of outputs `(N, C)` is the layer's output at some position of that row."""
    if layer_output.shape[-1] != outputs.shape[-1] or len(layer_output) != len(outputs):
        return False
    positions = layer_output.reshape(len(outputs), -1, outputs.shape[-1]).to(outputs)
    return bool((positions == outputs[:, None]).all(-1).any(1).all())
