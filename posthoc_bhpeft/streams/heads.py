"""The head of a classifier grows: new outputs at its end, the old ones as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from peft import PeftModel

# Where a config says how new weights are drawn, and what transformers does where it does not.
_SPREADS = ("initializer_range", "init_std")
_SPREAD = 0.02


def grow_head(model: PeftModel, n_new: int, generator: torch.Generator) -> None:
    """Give a classifier more outputs, in place.

    Old outputs keep their weights to the last bit. New ones are initialised as transformers does:
    weights normal with the config's `initializer_range`, biases zero. The frozen copy of the head
    that peft keeps grows alike, and config and model know the new number of labels, so that
    `save_pretrained` and `from_pretrained` go on working. An optimizer made before must be made
    anew, for the parameters are new ones.

    Args:
        model: a peft model whose head is trained along (`modules_to_save`).
        n_new: outputs to add.
        generator: on the CPU; draws the new weights.

    Raises:
        ConfigError: `n_new` is below 1.
        ModelError: no trained linear layer has one output for each label.
    """
    if n_new < 1:
        raise ConfigError(f"n_new is {n_new}; a head grows by 1 output or more.")
    config = model.config
    old = int(config.num_labels)
    layers = list(_last_layers(model, old))
    if not layers:
        raise ModelError(
            f"No trained head with {old} outputs was found, so there is nothing to grow. Supported "
            "are sequence classifiers whose head is in modules_to_save, as peft does for "
            "task_type='SEQ_CLS'."
        )
    spread = next((v for name in _SPREADS if (v := getattr(config, name, None))), _SPREAD)
    weight = torch.empty(n_new, layers[0].in_features).normal_(0.0, spread, generator=generator)
    for layer in layers:
        _grow(layer, weight)
    name_outputs(model, [*_names(config), *(f"LABEL_{old + i}" for i in range(n_new))])


def name_outputs(model: PeftModel, names: Sequence[str]) -> None:
    """Write the names of all outputs, and with them their number, into config and model.

    Args:
        model: a peft model.
        names: one for each output, no two alike.
    """
    config = model.config
    # The number of labels follows from id2label.
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    for module in model.modules():
        # In vars only: wrappers pass attributes of the model through.
        if "num_labels" in vars(module):
            vars(module)["num_labels"] = len(names)


def _last_layers(model: PeftModel, n_outputs: int) -> Iterator[nn.Linear]:
    """The output layer in each trained head, and in the frozen copy beside it."""
    from peft.utils.other import ModulesToSaveWrapper

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for head in (*wrapper.modules_to_save.values(), wrapper.original_module):
                # A head may have hidden layers (RoBERTa, ELECTRA, T5); the last one speaks.
                fitting = [m for m in head.modules() if _is_linear(m, n_outputs)]
                yield from fitting[-1:]


def _is_linear(module: nn.Module, n_outputs: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == n_outputs


def _grow(layer: nn.Linear, weight: Tensor) -> None:
    layer.weight = _longer(layer.weight, weight)
    if layer.bias is not None:
        layer.bias = _longer(layer.bias, torch.zeros(len(weight)))
    layer.out_features += len(weight)


def _longer(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    grown = torch.cat([parameter.detach(), rows.to(parameter)])
    return nn.Parameter(grown, requires_grad=parameter.requires_grad)


def _names(config: Any) -> list[str]:
    return [str(config.id2label[i]) for i in range(int(config.num_labels))]
