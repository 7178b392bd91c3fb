"""AdapterHub's bottleneck adapters and prefixes, tensor by tensor.

Where the two libraries differ: a hybrid has no reparametrising network for a prefix, so that is
run once here; and its scale is one number, so a learned one is multiplied into the up-projection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.hybrid.config import AdapterPlacement
from posthoc_bhpeft.hybrid.targets import default_targets
from posthoc_bhpeft.interop.source import fits, incomplete, prefix_part, targets_for

Part = tuple[dict[str, Any], dict[str, Tensor]]

#: Model types whose blocks the two libraries cut up in the same way.
_ENCODERS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")

#: Settings of a bottleneck with the one value that a hybrid can compute.
_PLAIN: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "phm_layer": False,
}
#: Names of activations that transformers calls otherwise; the second table for old files.
_ACTIVATIONS = {"leakyrelu": "leaky_relu"}
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}

_BOTTLENECK_KEY = re.compile(
    r"(?P<block>.+?)(\.output_adapters)?\.adapters\.(?P<tensor>adapter_down\.0\.(weight|bias)|"
    r"adapter_up\.(weight|bias)|scaling)"
)
_PREFIX_KEY = re.compile(r".+\.prefix_tunings\.(?P<place>\w+)\.(?P<tensor>.+)")


def bottleneck(
    model: PreTrainedModel,
    folder: Path,
    part: Mapping[str, Any],
    stored: dict[str, Tensor],
    legacy: bool,
) -> Part:
    """Settings and tensors of a bottleneck adapter after the feed-forward.

    Args:
        model: The base model.
        folder: For errors.
        part: Its settings.
        stored: The file's tensors; those of the adapter are taken out.
        legacy: Whether the file is older than the names of its activations.

    Raises:
        CheckpointError: It is not whole or does not fit the model.
        ConfigError: A setting that a hybrid does not have.
    """
    _check_family(model, folder, "adapter")
    placement = _placement(folder, part)
    adapters: dict[str, dict[str, Tensor]] = {}
    for key in list(stored):
        found = _BOTTLENECK_KEY.fullmatch(key)
        if found:
            adapters.setdefault(found["block"], {})[found["tensor"]] = stored.pop(key)
    tensors: dict[str, Tensor] = {}
    inputs: list[str] = []
    for block, adapter in adapters.items():
        target, source = _places(str(model.config.model_type), block, placement)
        tensors |= _renamed(folder, target, adapter, int(model.config.hidden_size))
        inputs.append(source)
    scale = part.get("scaling", 1.0)
    settings = {
        "bottleneck_size": _one_size(folder, tensors),
        "adapter_placement": placement,
        "adapter_activation": _activation(folder, str(part["non_linearity"]), legacy),
        "adapter_scaling": scale if isinstance(scale, int | float) else 1.0,
        "adapter_dropout": part.get("dropout", 0.0),
    }
    return settings | _targets(model, placement, tensors, inputs), tensors


def prefix(
    model: PreTrainedModel, folder: Path, part: Mapping[str, Any], stored: dict[str, Tensor]
) -> Part:
    """Settings and tensors of a prefix, flat or behind a network; as for `bottleneck`."""
    _check_family(model, folder, "prefix")
    pieces: dict[str, Tensor] = {}
    for key in list(stored):
        found = _PREFIX_KEY.fullmatch(key)
        if found and found["place"] == "self_prefix":
            pieces[found["tensor"]] = stored.pop(key)
    flat = pieces["control_trans"] if "control_trans" in pieces else _run(folder, part, pieces)
    tokens = int(part["prefix_length"])
    tensors, targets = prefix_part(model, folder, flat, tokens, part.get("leave_out") or ())
    settings = {
        "num_virtual_tokens": tokens,
        "prefix_dropout": part.get("dropout", 0.0),
        "prefix_target_modules": targets,
    }
    return settings, tensors


def _run(folder: Path, part: Mapping[str, Any], pieces: Mapping[str, Tensor]) -> Tensor:
    """Keys and values that the reparametrising network makes, `W2 act(W1 e + b1) + b2`."""
    names = [f"control_trans.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    missing = sorted({"wte.weight", *names} - set(pieces))
    if missing:
        raise incomplete(folder, f"its prefix lacks {missing[0]!r}")
    first, first_bias, second, second_bias = (pieces[name] for name in names)
    act = ACT2FN[_activation(folder, str(part.get("non_linearity", "tanh")), legacy=False)]
    with torch.no_grad():
        hidden = act(torch.nn.functional.linear(pieces["wte.weight"], first, first_bias))
        return torch.nn.functional.linear(hidden, second, second_bias)


def _check_family(model: PreTrainedModel, folder: Path, what: str) -> None:
    if model.config.model_type not in _ENCODERS:
        raise ConfigError(
            f"The {what} in {str(folder)!r} is for the model type {model.config.model_type!r}, "
            "where AdapterHub puts it at another place than a hybrid. It can be imported for "
            f"{', '.join(_ENCODERS)}; LoRA for others too."
        )


def _placement(folder: Path, part: Mapping[str, Any]) -> AdapterPlacement:
    for name, value in _PLAIN.items():
        if part.get(name, value) != value:
            raise _not_plain(folder, name, part[name], value)
    if part.get("is_parallel"):
        return AdapterPlacement.PARALLEL
    if not part.get("original_ln_before"):
        return AdapterPlacement.SEQUENTIAL
    if part.get("residual_before_ln", True) is not True:
        raise _not_plain(folder, "residual_before_ln", part["residual_before_ln"], True)
    return AdapterPlacement.POST_LAYERNORM


def _not_plain(folder: Path, name: str, got: object, value: object) -> ConfigError:
    return ConfigError(
        f"The adapter in {str(folder)!r} has {name}={got!r}; a hybrid computes {name}={value!r} "
        "only, as in seq_bn and par_bn: one bottleneck a block, after or beside the feed-forward, "
        "with no LayerNorm of its own."
    )


def _places(model_type: str, block: str, placement: AdapterPlacement) -> tuple[str, str]:
    """The module that gets the adapter of a block, and the feed-forward's first linear one."""
    inside = placement is AdapterPlacement.POST_LAYERNORM
    if model_type == "distilbert":
        return f"{block}.{'output_layer_norm' if inside else 'ffn.lin2'}", f"{block}.ffn.lin1"
    layer = block.removesuffix(".output")
    return f"{block}.{'LayerNorm' if inside else 'dense'}", f"{layer}.intermediate.dense"


def _renamed(
    folder: Path, target: str, adapter: Mapping[str, Tensor], width: int
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for old, new in (("adapter_down.0", "down"), ("adapter_up", "up")):
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" not in adapter:
                raise incomplete(folder, f"its adapter for {target!r} lacks {old}.{kind}")
            tensors[f"{target}.bhpeft_adapter_{new}.{kind}"] = adapter[f"{old}.{kind}"]
    down, up = (f"{target}.bhpeft_adapter_{side}" for side in ("down", "up"))
    size = tensors[f"{down}.weight"].shape[0]
    for name, shape in {
        f"{down}.weight": (size, width),
        f"{down}.bias": (size,),
        f"{up}.weight": (width, size),
        f"{up}.bias": (width,),
    }.items():
        fits(folder, repr(name), tensors[name], shape)
    if "scaling" in adapter:  # one number, or one for each of the outputs
        tensors[f"{up}.weight"] = tensors[f"{up}.weight"] * adapter["scaling"][:, None]
        tensors[f"{up}.bias"] = tensors[f"{up}.bias"] * adapter["scaling"]
    return tensors


def _one_size(folder: Path, tensors: Mapping[str, Tensor]) -> int:
    sizes = {t.shape[0] for name, t in tensors.items() if name.endswith("adapter_down.bias")}
    if len(sizes) != 1:
        raise CheckpointError(
            f"The adapter in {str(folder)!r} needs one size for all layers (a hybrid has one "
            f"bottleneck_size); got {sorted(sizes) or 'no adapter'}, from a reduction_factor for "
            "each layer."
        )
    return int(next(iter(sizes)))


def _activation(folder: Path, name: str, legacy: bool) -> str:
    known = {**_ACTIVATIONS, **(_OLD_ACTIVATIONS if legacy else {})}
    found = known.get(name.lower(), name.lower())
    if found not in ACT2FN:
        raise ConfigError(
            f"The adapter in {str(folder)!r} has non_linearity={name!r}, which transformers does "
            f"not have. It has {', '.join(sorted(ACT2FN))}."
        )
    return found


def _targets(
    model: PreTrainedModel,
    placement: AdapterPlacement,
    tensors: Mapping[str, Tensor],
    inputs: list[str],
) -> dict[str, Any]:
    modules = dict(model.named_modules())
    known = default_targets(model.config.model_type)
    assert known is not None, "every one of _ENCODERS has defaults"
    names = list(dict.fromkeys(name.partition(".bhpeft_")[0] for name in tensors))
    inside = placement is AdapterPlacement.POST_LAYERNORM
    shorter = known.layer_norm if inside else known.feed_forward_out
    found: dict[str, Any] = {"adapter_target_modules": targets_for(modules, names, shorter)}
    if placement is AdapterPlacement.PARALLEL:
        found["adapter_input_modules"] = targets_for(modules, inputs, known.feed_forward_in)
    return found
