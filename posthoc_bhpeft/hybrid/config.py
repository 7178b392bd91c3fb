"""The configuration of a hybrid: LoRA, bottleneck adapters and prefix keys and values together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from peft import PeftConfig
from transformers.activations import ACT2FN

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.hybrid.registration import peft_type

#: Tasks whose output at one position must not depend on later positions.
_LANGUAGE_MODELLING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


class AdapterPlacement(str, Enum):
    """Where a bottleneck adapter sits in a Transformer block.

    `SEQUENTIAL`: after the feed-forward, `y + s up(act(down(y)))` with `y = ffn(x)`
    (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751).
    `PARALLEL`: beside the feed-forward, `ffn(x) + s up(act(down(x)))`
    (He et al. 2022, https://arxiv.org/abs/2110.04366).
    `POST_LAYERNORM`: inside the add-and-normalise of a post-LayerNorm block,
    `LN(z + s up(act(down(LN(z)))))` with `z = ffn(x) + x`, which AdapterHub calls seq_bn
    (Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247).
    """

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    POST_LAYERNORM = "post_layernorm"


@dataclass
class HybridConfig(PeftConfig):
    """LoRA, bottleneck adapters and prefix tuning in one peft config; 0 leaves a part out.

    Targets are a list of module name endings or one regular expression for the whole name, as
    everywhere in peft. `None` means the default of the model type (docs/hybrid.md lists them).

    Attributes:
        r: Rank of LoRA, `W x + (lora_alpha / r) B A x` (https://arxiv.org/abs/2106.09685).
        lora_alpha: Its numerator.
        lora_dropout: On the input of A.
        use_rslora: Scale by `lora_alpha / sqrt(r)` instead (https://arxiv.org/abs/2312.03732).
        lora_target_modules: The `nn.Linear` or `Conv1D` modules that get LoRA.
        bottleneck_size: Width of the adapters.
        adapter_placement: See `AdapterPlacement`.
        adapter_activation: Any activation name of transformers, such as "relu" or "gelu".
        adapter_scaling: The factor s on an adapter's output.
        adapter_dropout: On the activated bottleneck.
        adapter_target_modules: The feed-forward's last linear module; for "post_layernorm" the
            LayerNorm after it.
        adapter_input_modules: Only for "parallel": the feed-forward's first linear module, whose
            input the adapter reads.
        num_virtual_tokens: Trainable keys and values put before those of every attention
            (https://arxiv.org/abs/2101.00190).
        prefix_init_std: Standard deviation of their normal initialisation.
        prefix_dropout: On the keys and values.
        prefix_target_modules: The attention modules.
        shift_positions: Let the text start at position `num_virtual_tokens` instead of 0, as with
            peft's own PrefixTuning: for keys and values that were trained so.
        gates: One trainable scalar in (0, 1) an input for every part, in the manner of UniPELT
            (https://arxiv.org/abs/2110.07577), averaged over the real tokens only.
        modules_to_save: Modules trained whole and saved along, usually the head.
        exclude_modules: Modules that get nothing even where a target matches.
        layers_to_transform: Layer indices to touch; `None` means all.
        layers_pattern: Name of the list of layers, where the index cannot be found without it.

    Raises:
        ConfigError: If a value is out of range or two values contradict each other.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    use_rslora: bool = False
    lora_target_modules: list[str] | str | None = None
    bottleneck_size: int = 16
    adapter_placement: AdapterPlacement = AdapterPlacement.SEQUENTIAL
    adapter_activation: str = "relu"
    adapter_scaling: float = 1.0
    adapter_dropout: float = 0.0
    adapter_target_modules: list[str] | str | None = None
    adapter_input_modules: list[str] | str | None = None
    num_virtual_tokens: int = 8
    prefix_init_std: float = 0.02
    prefix_dropout: float = 0.0
    prefix_target_modules: list[str] | str | None = None
    shift_positions: bool = False
    gates: bool = False
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type()
        self._check_sizes()
        self._check_choices()

    # peft asks every config for these two. A hybrid has a list of targets for each part instead.
    @property
    def target_modules(self) -> str:
        """A pattern that matches nothing: see the three `..._target_modules` fields."""
        return "(?!)"

    @property
    def target_parameters(self) -> None:
        """Always None: a hybrid targets modules."""

    @property
    def lora_scaling(self) -> float:
        """The factor on `B A x`."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def _check_sizes(self) -> None:
        for name in ("r", "bottleneck_size", "num_virtual_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(
                    f"{name}={value!r}. It takes a whole number, 0 to leave the part out."
                )
        if self.r == self.bottleneck_size == self.num_virtual_tokens == 0:
            raise ConfigError(
                "r, bottleneck_size and num_virtual_tokens are all 0, so nothing would be added to "
                "the model. Set at least one of them above 0."
            )
        for name in ("lora_dropout", "adapter_dropout", "prefix_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)!r}. It takes a number in [0, 1).")
        if self.prefix_init_std < 0:
            raise ConfigError(f"prefix_init_std={self.prefix_init_std!r}. It takes 0 or more.")

    def _check_choices(self) -> None:
        try:
            self.adapter_placement = AdapterPlacement(self.adapter_placement)
        except ValueError:
            choices = ", ".join(repr(placement.value) for placement in AdapterPlacement)
            raise ConfigError(
                f"adapter_placement={self.adapter_placement!r}. It takes one of {choices}."
            ) from None
        if self.adapter_activation not in ACT2FN:
            raise ConfigError(
                f"adapter_activation={self.adapter_activation!r} is no activation of transformers. "
                f"It takes one of {', '.join(sorted(ACT2FN))}."
            )
        if self.shift_positions and self.num_virtual_tokens == 0:
            raise ConfigError(
                "shift_positions=True with num_virtual_tokens=0: the text is shifted by the length "
                "of the prefix, and there is none. Leave shift_positions off."
            )
        if self.gates and self.task_type in _LANGUAGE_MODELLING:
            raise ConfigError(
                f"gates=True with task_type={str(self.task_type)!r}: a gate averages over the "
                "whole text, so a token's prediction would see the tokens after it. Leave gates "
                "off for language modelling; classification tasks may use them."
            )
