"""Who gets what: settled, and checked, before the model is touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, __version__
from transformers.pytorch_utils import Conv1D

from posthoc_bhpeft.errors import PrefixUnsupportedError, TargetError
from posthoc_bhpeft.hybrid.attention import CHILD, config_of, takes_prefix
from posthoc_bhpeft.hybrid.config import AdapterPlacement, HybridConfig
from posthoc_bhpeft.hybrid.gates import DECODER, ENCODER, GateMask, TokenMask
from posthoc_bhpeft.hybrid.positions import position_modules
from posthoc_bhpeft.hybrid.relay import Relay
from posthoc_bhpeft.hybrid.targets import (
    ANY_HEADS,
    READS_ENCODER,
    SHARED_POSITIONS_LORA,
    Targets,
    default_targets,
    model_types,
    shares_positions,
)


@dataclass(frozen=True)
class Role:
    """What one module gets.

    Attributes:
        lora: LoRA.
        adapter: A bottleneck adapter.
        prefix: Trainable keys and values.
        positions: Positions counted from the prefix's end.
        relay_out: Where it puts its input for a parallel adapter.
        relay_in: Where its own parallel adapter finds its input.
        width: Size of an attention's input, for the gate of its prefix.
        gate_mask: The mask for its gates, where it has some.
    """

    lora: bool = False
    adapter: bool = False
    prefix: bool = False
    positions: bool = False
    relay_out: Relay | None = field(default=None, compare=False)
    relay_in: Relay | None = field(default=None, compare=False)
    width: int = 0
    gate_mask: GateMask | None = field(default=None, compare=False)


def fill_in_defaults(model: nn.Module, config: HybridConfig) -> None:
    """Write the model type's default targets into the fields that are None.

    So the saved adapter_config.json says what was adapted, whatever later defaults are.

    Raises:
        TargetError: If the model type has no defaults.
        PrefixUnsupportedError: If its attention takes no prefix.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = default_targets(kind)
    if known is not None and shares_positions(getattr(model, "config", None)):
        known = replace(known, lora=SHARED_POSITIONS_LORA)
    post_layernorm = config.adapter_placement is AdapterPlacement.POST_LAYERNORM
    needed = {
        "lora_target_modules": config.r > 0,
        "adapter_target_modules": config.bottleneck_size > 0,
        "adapter_input_modules": config.bottleneck_size > 0
        and config.adapter_placement is AdapterPlacement.PARALLEL,
        "prefix_target_modules": config.num_virtual_tokens > 0,
    }
    missing = [name for name, used in needed.items() if used and getattr(config, name) is None]
    if missing and known is None:
        raise TargetError(
            f"No default targets for the model type {kind!r}. Set {', '.join(missing)} to module "
            "name endings such as ['q_proj', 'v_proj'] (or the size of that part to 0). Model "
            f"types with defaults: {', '.join(model_types())}."
        )
    if known is not None:
        defaults: dict[str, Targets | None] = {
            "lora_target_modules": known.lora,
            "adapter_target_modules": known.layer_norm
            if post_layernorm
            else known.feed_forward_out,
            "adapter_input_modules": known.feed_forward_in,
            "prefix_target_modules": known.attention,
        }
        for name in missing:
            if defaults[name] is None:
                raise _no_default(name, str(kind))
            setattr(config, name, defaults[name])
    heads = ANY_HEADS if known is None else known.heads
    config.modules_to_save = _modules_to_save(model, config, heads)


def plan_for(model: nn.Module, config: HybridConfig, tokens: TokenMask) -> dict[str, Role]:
    """Module name -> role, for a config without gaps.

    Raises:
        TargetError: If a part matches no module, or one it cannot be put on.
        PrefixUnsupportedError: If an attention takes no prefix.
    """
    modules = dict(_outer_modules(model))
    roles: dict[str, Role] = {}
    if config.r:
        for name in _select(model, config, "lora_target_modules", is_linear):
            roles[name] = replace(roles.get(name, Role()), lora=True)
    if config.bottleneck_size:
        _plan_adapters(model, config, roles)
    if config.num_virtual_tokens:
        for name in _select(model, config, "prefix_target_modules", lambda module: True):
            _check_attention(name, modules[name])
            width = int(config_of(modules[name]).hidden_size)
            roles[name] = replace(roles.get(name, Role()), prefix=True, width=width)
    if config.shift_positions:
        roles |= {name: Role(positions=True) for name in _positions(modules)}
    if not config.gates:
        return roles
    two_streams = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for name, role in roles.items():
        in_decoder = "decoder" in name.split(".") and not re.fullmatch(READS_ENCODER, name)
        stream = DECODER if two_streams and in_decoder else ENCODER
        roles[name] = replace(role, gate_mask=GateMask(tokens, stream))
    return roles


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA and sequential adapters can be put on a module."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, (nn.Linear, Conv1D))


def is_layer_norm(module: nn.Module) -> bool:
    """Whether an adapter can be put inside an add-and-normalise that ends with this module."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, nn.LayerNorm)


def _modules_to_save(
    model: nn.Module, config: HybridConfig, heads: tuple[str, ...]
) -> list[str] | None:
    """What the user named, and for tasks with a head what the model has of it."""
    given = list(dict.fromkeys(config.modules_to_save or ()))
    names = [name for name, _ in model.named_modules()]
    missing = [one for one in given if not any(name.endswith(one) for name in names)]
    # peft's classes for these tasks add both usual names, whichever the model has.
    unknown = [one for one in missing if one not in _ADDED_BY_PEFT]
    if unknown:
        raise TargetError(
            f"modules_to_save names {unknown}, which {type(model).__name__} does not have. Its "
            f"outermost modules are {[name for name, _ in model.named_children()]}."
        )
    found = [name for name in heads if isinstance(getattr(model, name, None), nn.Module)]
    if config.task_type in _WITH_HEAD:
        given = list(dict.fromkeys([*given, *found]))
        if all(one in missing for one in given):
            raise TargetError(
                f"task_type={str(config.task_type)!r}, and {type(model).__name__} has no head of a "
                f"known name. Its outermost modules are "
                f"{[name for name, _ in model.named_children()]}: name its head in "
                "modules_to_save, or load the model with AutoModelForSequenceClassification."
            )
    elif config.modules_to_save is None and config.task_type is None:
        given = found
    return [one for one in given if one not in missing] or None


_ADDED_BY_PEFT = ("classifier", "score", "qa_outputs")
_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def _positions(modules: dict[str, nn.Module]) -> list[str]:
    names = position_modules(modules.items())
    if not names:
        raise TargetError(
            "shift_positions=True, and this model has no table of positions and no rotary angles "
            "of a known name (position_embeddings, wpe, embed_positions, rotary_emb). Leave "
            "shift_positions off: the text then starts at position 0."
        )
    return names


def _plan_adapters(model: nn.Module, config: HybridConfig, roles: dict[str, Role]) -> None:
    inside = config.adapter_placement is AdapterPlacement.POST_LAYERNORM
    names = _select(model, config, "adapter_target_modules", is_layer_norm if inside else is_linear)
    for name in names:
        roles[name] = replace(roles.get(name, Role()), adapter=True)
    if config.adapter_placement is not AdapterPlacement.PARALLEL:
        return
    sources = _select(model, config, "adapter_input_modules", is_linear)
    for name, source in _pair(names, sources).items():
        relay = Relay()
        roles[source] = replace(roles.get(source, Role()), relay_out=relay)
        roles[name] = replace(roles[name], relay_in=relay)


def _pair(names: list[str], sources: list[str]) -> dict[str, str]:
    """Each adapter with the one input module that shares most of its path."""
    pairs: dict[str, str] = {}
    for name in names:
        shared = {source: _shared_parts(name, source) for source in sources}
        best = [source for source, parts in shared.items() if parts == max(shared.values())]
        if len(best) != 1 or best[0] in pairs.values():
            raise TargetError(
                f"The parallel adapter at {name!r} needs exactly one input module of its own; "
                f"adapter_input_modules offers {best}. Name the first linear module of each "
                "feed-forward there and its last one in adapter_target_modules."
            )
        pairs[name] = best[0]
    return pairs


def _shared_parts(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count


def _outer_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """All modules except what is inside the layers of a tuner."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside or ("\0",)):
            yield name, module
            if isinstance(module, BaseTunerLayer):
                inside = (*inside, f"{name}.")


def _select(
    model: nn.Module,
    config: HybridConfig,
    field_name: str,
    fits: Callable[[nn.Module], bool],
) -> list[str]:
    """Names of the modules that a part goes on."""
    modules = dict(_outer_modules(model))
    targets: Targets = getattr(config, field_name)
    if targets == "all-linear":
        # As in peft: often tied to the embedding, which would change with it. Heads are trained.
        output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        matched = [name for name, one in modules.items() if fits(one) and one is not output]
    else:
        matched = [name for name in modules if matches(name, targets)]
    names = [name for name in matched if _is_allowed(name, config)]
    wrong = [name for name in names if not fits(modules[name])]
    if wrong:
        raise TargetError(
            f"{field_name} matches {wrong[0]!r}, a {type(modules[wrong[0]]).__name__}. LoRA and "
            "adapters go on nn.Linear and transformers' Conv1D, adapters with "
            "adapter_placement='post_layernorm' on nn.LayerNorm. Name such a module, or put this "
            "one into exclude_modules."
        )
    if not names:
        linear = [name for name in modules if is_linear(modules[name])]
        raise TargetError(
            f"{field_name}={targets!r} matches no module (exclude_modules="
            f"{config.exclude_modules!r}, layers_to_transform={config.layers_to_transform!r}). "
            f"Linear modules here are, among others, {linear[:4]}. A config remembers the targets "
            "of the first model it was used on; make a new one for a model of another type."
        )
    return names


def matches(name: str, targets: Targets) -> bool:
    """Whether targets, a list of name endings or one regular expression, name a module."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_allowed(name: str, config: HybridConfig) -> bool:
    if config.exclude_modules and matches(name, config.exclude_modules):
        return False
    parts = name.split(".")
    if any(_is_inside(parts, saved.split(".")) for saved in config.modules_to_save or ()):
        return False
    if config.layers_to_transform is None:
        return True
    wanted = config.layers_to_transform
    index = _layer_index(name, config.layers_pattern)
    return index in ([wanted] if isinstance(wanted, int) else wanted)


def _is_inside(parts: list[str], saved: list[str]) -> bool:
    """Whether the path of a module to save occurs in a module's path."""
    return any(parts[i : i + len(saved)] == saved for i in range(len(parts)))


def _layer_index(name: str, patterns: list[str] | str | None) -> int | None:
    for pattern in [patterns] if isinstance(patterns, str) else patterns or [r"[^.]+"]:
        found = re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", f"{name}.")
        if found:
            return int(found.group(1))
    return None


def _check_attention(name: str, attention: nn.Module) -> None:
    if not takes_prefix(attention) and not hasattr(attention, CHILD):
        raise PrefixUnsupportedError(
            f"No prefix on {name!r}: {type(attention).__name__} of transformers {__version__} does "
            "not compute its attention through the attention interface, which is where a prefix "
            "enters. Set num_virtual_tokens=0 to use LoRA and adapters only, or name attention "
            "modules in prefix_target_modules. Newer versions of transformers may have it."
        )


def _no_default(field_name: str, kind: str) -> TargetError:
    if field_name == "prefix_target_modules":
        return PrefixUnsupportedError(
            f"The model type {kind!r} takes no prefix: transformers computes its attention without "
            "the attention interface, which is where a prefix enters. Set num_virtual_tokens=0 to "
            "use LoRA and adapters only."
        )
    return TargetError(
        f"adapter_placement='post_layernorm' needs blocks that normalise last, and {kind!r} "
        "normalises first. Use adapter_placement='sequential' or 'parallel', or name the LayerNorm "
        "modules in adapter_target_modules."
    )
