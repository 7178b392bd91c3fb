"""How to train, as a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.quantization import NAMED, named_quantization

if TYPE_CHECKING:
    from peft import PeftConfig

PeftKind = Literal["hybrid", "lora", "adapter", "prefix"]
MixedPrecision = Literal["no", "bf16", "fp16"]

# Those that come as a string from outside, and what they may be.
_SUPPORTED = {
    "mixed_precision": get_args(MixedPrecision),
    "dtype": ("float32", "bfloat16", "float16", "auto"),
    "quantize": ("no", *NAMED),
}

# A prefix moves the loss far less than a weight of the same size, so alone it needs larger steps.
_LEARNING_RATES: dict[PeftKind, float] = {
    "hybrid": 1e-3,
    "lora": 1e-3,
    "adapter": 1e-3,
    "prefix": 1e-2,
}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        peft: which parts to train: all three together, or one of them.
        epochs: passes over the training rows, at most.
        learning_rate: peak of AdamW's learning rate; None takes the default of `peft`.
        batch_size: rows a step.
        weight_decay: of AdamW, on all trained weights.
        warmup: share of the steps in which the learning rate rises; then it falls to 0 linearly.
        patience: stop after so many epochs without a better validation NLL. The weights of the
            best epoch are kept. 0 goes through all epochs, still keeping the best.
        max_length: tokens a text is cut at, at its end. Prompts with choices lose their beginning
            instead and need more room: `bhpeft train` gives them 512.
        seed: of weights, order of the rows and dropout.
        rank: of LoRA.
        bottleneck_size: of the adapters.
        num_virtual_tokens: of the prefix.
        dtype: of the base model.
        quantize: "4bit" or "8bit" keeps the frozen weights so, with bitsandbytes; or "no".
        mixed_precision: "bf16" or "fp16" computes the forward pass in that type where torch's
            autocast deems it safe, weights staying as they are; "bf16" works on a CPU too.
    """

    peft: PeftKind = "hybrid"
    epochs: int = 6
    learning_rate: float | None = None
    batch_size: int = 16
    weight_decay: float = 0.01
    warmup: float = 0.06
    patience: int = 2
    max_length: int = 128
    seed: int = 0
    rank: int = 8
    bottleneck_size: int = 16
    num_virtual_tokens: int = 8
    dtype: str = "float32"
    quantize: str = "no"
    mixed_precision: MixedPrecision = "no"

    def __post_init__(self) -> None:
        if self.peft not in _LEARNING_RATES:
            raise ConfigError(
                f"peft is {self.peft!r}. Supported: {', '.join(map(repr, _LEARNING_RATES))}."
            )
        for name, supported in _SUPPORTED.items():
            if getattr(self, name) not in supported:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}. Supported: "
                    f"{', '.join(map(repr, supported))}."
                )
        for name in ("epochs", "batch_size", "rank", "bottleneck_size", "num_virtual_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.learning_rate is not None and not self.learning_rate > 0.0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be above 0.")
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError(f"warmup is {self.warmup}; it must be at least 0 and below 1.")
        if self.patience < 0 or self.weight_decay < 0.0:
            raise ConfigError("patience and weight_decay must not be negative.")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate given, or the default of the parts trained."""
        return self.learning_rate or _LEARNING_RATES[self.peft]

    def quantization(self, heads: Collection[str] = ()) -> Mapping[str, Any] | None:
        """How `load_base` quantises the base; `heads` are modules that are trained whole."""
        if self.quantize == "no":
            return None
        return named_quantization(self.quantize, dtype=self.dtype, heads=heads)

    def peft_config(self, task_type: str | None = "SEQ_CLS") -> PeftConfig:
        """The `HybridConfig` of these settings; parts not asked for have size 0.

        Args:
            task_type: peft's, which tells what the head is; None lets the hybrid find it.
        """
        from posthoc_bhpeft.hybrid import HybridConfig

        return HybridConfig(
            task_type=task_type,
            r=self.rank if self.peft in ("hybrid", "lora") else 0,
            bottleneck_size=self.bottleneck_size if self.peft in ("hybrid", "adapter") else 0,
            num_virtual_tokens=self.num_virtual_tokens if self.peft in ("hybrid", "prefix") else 0,
        )
