"""The support matrix: one case a row, a stock peft method on a tiny random model.

A case is built with peft alone, every weight moved away from its start, saved, and loaded with
`PeftModel.from_pretrained`, as somebody else's checkpoint would be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForSequenceClassification

from tests.hybrid.families import tiny_model
from tests.models import randomize

N_LABELS = 3
SEQ: dict[str, Any] = {"task_type": "SEQ_CLS"}


def thaw(model: PeftModel) -> None:
    """What the message about a frozen prompt says: peft loads no prompt for training."""
    model.set_adapter(model.active_adapter)
    model.prompt_encoder[model.active_adapter].requires_grad_(True)


@dataclass(frozen=True)
class Case:
    """One row of the support table.

    Attributes:
        method: The peft method, as people call it.
        family: Of `tests.hybrid.families`.
        config: Of peft.
        detail: What is special about this row.
        others: Further adapters, loaded beside the first and not active.
        refused: Part of the message, where the row is refused.
    """

    method: str
    family: str
    config: PeftConfig
    detail: str = ""
    others: tuple[str, ...] = ()
    refused: str = ""

    @property
    def name(self) -> str:
        """Unique, for test ids."""
        return " ".join(filter(None, (self.method, self.detail, self.family)))


def lora(family: str, detail: str = "", **settings: Any) -> Case:
    """LoRA of rank 2, on peft's own targets for the family unless told."""
    others = settings.pop("others", ())
    refused = settings.pop("refused", "")
    settings.setdefault("r", 2)
    method = "DoRA" if settings.get("use_dora") else "LoRA"
    return Case(method, family, LoraConfig(**SEQ, **settings), detail, others, refused)


def adalora(family: str, detail: str = "", **settings: Any) -> Case:
    """AdaLoRA that starts with rank 3."""
    settings = {"init_r": 3, "target_r": 2, "total_step": 10, **settings}
    return Case("AdaLoRA", family, AdaLoraConfig(**SEQ, **settings), detail)


def prompt(method: str, family: str, config: type, detail: str = "", **settings: Any) -> Case:
    """A prompt-learning method with three virtual tokens."""
    refused = settings.pop("refused", "")
    made = config(**SEQ, num_virtual_tokens=3, **settings)
    return Case(method, family, made, detail, refused=refused)


@cache
def cases() -> tuple[Case, ...]:
    """Every row, in the order of the table."""
    norms = {"target_modules": ["LayerNorm"]}
    distil = {"target_modules": ["q_lin", "v_lin"]}
    distil_ia3 = {"target_modules": ["k_lin", "v_lin", "lin2"], "feedforward_modules": ["lin2"]}
    return (
        lora("bert"),
        lora("roberta"),
        lora("distilbert", **distil),
        lora("gpt2", "on Conv1D", fan_in_fan_out=True),
        lora("llama"),
        lora("qwen2"),
        lora("t5"),
        lora("bart"),
        lora(
            "roberta", "rsLoRA, on all linear layers", use_rslora=True, target_modules="all-linear"
        ),
        lora("bert", "with embeddings", target_modules=["word_embeddings", "query"]),
        lora("llama", "with embeddings", target_modules=["embed_tokens", "q_proj"]),
        lora("gpt2", "with embeddings", target_modules=["wte", "c_attn"], fan_in_fan_out=True),
        lora("bert", "lora_bias", lora_bias=True),
        lora("bert", 'bias="lora_only"', bias="lora_only"),
        lora("gpt2", 'bias="lora_only", on Conv1D', bias="lora_only", fan_in_fan_out=True),
        lora("bert", 'bias="all"', bias="all"),
        lora("llama", "a layer in modules_to_save", modules_to_save=["mlp"]),
        lora("bert", "two adapters, one active", others=("second",)),
        lora("bert", "target_parameters", target_modules=[], target_parameters=["query.weight"]),
        lora("llama", "trainable tokens", trainable_token_indices={"embed_tokens": [4, 9, 17]}),
        lora("bert", use_dora=True),
        lora("gpt2", "on Conv1D", use_dora=True, fan_in_fan_out=True),
        lora("llama", use_dora=True, target_modules=["q_proj", "down_proj"]),
        lora("bert", "with embeddings", use_dora=True, target_modules=["word_embeddings", "key"]),
        adalora("bert"),
        adalora("t5"),
        adalora("llama", "pruned to rank 2"),
        Case("IA3", "bert", IA3Config(**SEQ)),
        Case("IA3", "distilbert", IA3Config(**SEQ, **distil_ia3)),
        Case("IA3", "gpt2", IA3Config(**SEQ, fan_in_fan_out=True), "on Conv1D"),
        Case("IA3", "llama", IA3Config(**SEQ)),
        Case("IA3", "t5", IA3Config(**SEQ)),
        Case("IA3", "bert", IA3Config(**SEQ), "two adapters, one active", ("second",)),
        prompt("Prefix tuning", "bert", PrefixTuningConfig),
        prompt("Prefix tuning", "gpt2", PrefixTuningConfig),
        prompt("Prefix tuning", "llama", PrefixTuningConfig, "grouped heads"),
        prompt("Prefix tuning", "roberta", PrefixTuningConfig, "projected", prefix_projection=True),
        prompt("Prompt tuning", "bert", PromptTuningConfig),
        prompt("Prompt tuning", "gpt2", PromptTuningConfig),
        prompt("Prompt tuning", "llama", PromptTuningConfig),
        prompt("P-tuning", "bert", PromptEncoderConfig, "MLP", encoder_hidden_size=8),
        prompt(
            "P-tuning",
            "llama",
            PromptEncoderConfig,
            "LSTM",
            encoder_hidden_size=8,
            encoder_reparameterization_type="LSTM",
        ),
        Case("LN tuning", "bert", LNTuningConfig(**SEQ, **norms), "LayerNorm"),
        Case("LN tuning", "gpt2", LNTuningConfig(**SEQ), "LayerNorm"),
        Case("LN tuning", "llama", LNTuningConfig(**SEQ), "RMSNorm"),
        Case("LN tuning", "qwen2", LNTuningConfig(**SEQ), "RMSNorm"),
        Case("LN tuning", "gemma2", LNTuningConfig(**SEQ), "RMSNorm with 1 + w"),
        Case("LN tuning", "t5", LNTuningConfig(**SEQ), "RMSNorm"),
        Case("VeRA", "bert", VeraConfig(**SEQ, r=4)),
        Case("VeRA", "llama", VeraConfig(**SEQ, r=4)),
        Case("LoHa", "bert", LoHaConfig(**SEQ, r=2, target_modules=["query"]), refused="LoHa"),
        Case(
            "OFT",
            "bert",
            OFTConfig(**SEQ, oft_block_size=8, target_modules=["query"]),
            refused="OFT",
        ),
    )


@cache
def _folders() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="support-")


@cache
def base_folder(family: str) -> Path:
    """A float32 base model on disk, written once in a process."""
    folder = Path(_folders().name) / family
    tiny_model(family, num_labels=N_LABELS, dtype=torch.float32).save_pretrained(folder)
    return folder


def base_of(family: str) -> torch.nn.Module:
    """The base model, loaded as a user would."""
    model = AutoModelForSequenceClassification.from_pretrained(base_folder(family))
    return model.eval()


def checkpoint(case: Case, folder: Path) -> Path:
    """Somebody else's checkpoint: built, trained in the sense that no weight is where it began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base_of(case.family), case.config)
    randomize(model, seed=1)
    model.save_pretrained(folder)
    return folder
