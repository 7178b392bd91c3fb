"""AdapterHub's prediction heads, put into the head that the transformers class has.

A class of transformers saves its own head under its own names. A "flexible" head is a small stack,
`heads.NAME.1.weight` and so on; where a transformers class computes the same stack, it fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from posthoc_bhpeft.checkpoints import read_json
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.interop.source import Head, check_head, incomplete
from posthoc_bhpeft.interop.tensors import read_tensors

CONFIG = "head_config.json"
WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True)
class Stack:
    """A head that a class of transformers computes.

    Attributes:
        layers: Number of linear layers.
        activation: Between them.
        pooled: Whether it reads the base's pooler instead of the first token.
        linear: Names of its linear modules, in order.
        modules: What to train and save.
    """

    layers: int
    activation: str | None
    pooled: bool
    linear: tuple[str, ...]
    modules: tuple[str, ...] = ("classifier",)


_DENSE = ("classifier.dense", "classifier.out_proj")
_STACKS: dict[str, tuple[Stack, ...]] = {
    # BERT's pooler is a linear layer and tanh over the first token, so it is the first of two.
    "bert": (
        Stack(2, "tanh", False, ("bert.pooler.dense", "classifier"), ("pooler", "classifier")),
        Stack(1, None, True, ("classifier",)),
    ),
    "distilbert": (
        Stack(2, "relu", False, ("pre_classifier", "classifier"), ("pre_classifier", "classifier")),
    ),
    "electra": (Stack(2, "gelu", False, _DENSE),),
    "roberta": (Stack(2, "tanh", False, _DENSE),),
    "xlm-roberta": (Stack(2, "tanh", False, _DENSE),),
}
_KINDS = ("classification", "multilabel_classification")


def read_head(model: PreTrainedModel, folder: Path) -> Head | None:
    """The head beside an adapter, in the base model's names; None where there is none.

    Raises:
        CheckpointError: It is not whole or does not fit the model.
        ConfigError: The model's class computes no such head.
    """
    if not (folder / CONFIG).is_file():
        return None
    config = read_json(folder / CONFIG)
    stored = read_tensors(folder, *WEIGHTS)
    if config.get("config") is None:
        head = Head(tuple(dict.fromkeys(key.partition(".")[0] for key in stored)), stored)
    else:
        head = _flexible(model, folder, config, stored)
    check_head(model, folder, head)
    return head


def label_names(folder: Path) -> tuple[str, ...] | None:
    """Names of the classes that a head was trained for; None where there is no head."""
    if not (folder / CONFIG).is_file():
        return None
    config = read_json(folder / CONFIG)
    form = config.get("config") or config
    numbers = form.get("label2id") or config.get("label2id")
    if numbers:
        return tuple(sorted(numbers, key=lambda name: int(numbers[name])))
    return tuple(f"LABEL_{index}" for index in range(int(form.get("num_labels") or 0))) or None


def _flexible(
    model: PreTrainedModel, folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]
) -> Head:
    form = config["config"]
    layers, activation = form.get("layers", 2), form.get("activation_function")
    pooled = bool(form.get("use_pooler", False))
    stack = next(
        (
            one
            for one in _STACKS.get(model.config.model_type, ())
            if form.get("head_type") in _KINDS
            and (one.layers, one.pooled) == (layers, pooled)
            and (layers == 1 or one.activation == activation)
        ),
        None,
    )
    if stack is None:
        raise ConfigError(
            f"The head in {str(folder)!r} is a {form.get('head_type')!r} of {layers} layers with "
            f"activation {activation!r} (use_pooler={pooled}), and {type(model).__name__} computes "
            "no such head. Keep the base model's own head with head_from='base' and train it."
        )
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(stack.linear):
        # Dropout, linear, activation, dropout, linear: only the linear ones have weights.
        for kind in ("weight", "bias"):
            key = f"heads.{config.get('name')}.{1 + 3 * index}.{kind}"
            if key not in stored:
                raise incomplete(folder, f"the head lacks {key!r}")
            tensors[f"{name}.{kind}"] = stored[key]
    return Head(stack.modules, tensors)
