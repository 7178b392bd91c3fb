"""The support matrix: one case a row, a stock peft method on a tiny random model.

A case is built with peft alone, every weight moved away from its start, saved, and loaded with
`PeftModel.from_pretrained`, as somebody else's checkpoint would be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    MultitaskPromptTuningConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForSequenceClassification

from tests.hybrid.families import Batch, tiny_batch, tiny_loader, tiny_model
from tests.models import randomize

N_LABELS = 3
SEQ: dict[str, Any] = {"task_type": "SEQ_CLS"}
DECODERS = ("gpt2", "llama")
PROMPTS = (PeftType.PROMPT_TUNING, PeftType.P_TUNING)


@dataclass(frozen=True)
class Case:
    """One row of the support table.

    Attributes:
        method: The peft method, as people call it.
        family: Of `tests.hybrid.families`.
        config: Of peft.
        detail: What is special about this row.
        train: Done with the model before it is saved.
        second: Whether a second adapter is loaded beside the first, and which one is active.
        under: Put on the model before `config`, which freezes it.
        saved: Whether the model is saved and loaded; some are refused as they are trained.
        refused: Part of the message, where the row is refused.
    """

    method: str
    family: str
    config: PeftConfig
    detail: str = ""
    train: Callable[[PeftModel], None] | None = None
    second: Literal["", "inactive", "active"] = ""
    under: PeftConfig | None = None
    saved: bool = True
    refused: str = ""

    @property
    def name(self) -> str:
        """Unique, for test ids."""
        return " ".join(filter(None, (self.method, self.detail, self.family)))

    @property
    def answers_last(self) -> bool:
        """Whether the model sees embeddings only and answers at the last position."""
        return self.family in DECODERS and self.config.peft_type in PROMPTS


def lora(family: str, detail: str = "", **settings: Any) -> Case:
    """LoRA of rank 2, on peft's own targets for the family unless told."""
    own = {name: settings.pop(name) for name in ("second", "refused") if name in settings}
    settings.setdefault("r", 2)
    method = "DoRA" if settings.get("use_dora") else "LoRA"
    return Case(method, family, LoraConfig(**SEQ, **settings), detail, **own)


def prompt(method: str, family: str, config: type, detail: str = "", **settings: Any) -> Case:
    """A prompt-learning method with three virtual tokens."""
    own = {name: settings.pop(name) for name in ("under", "saved", "refused") if name in settings}
    return Case(method, family, config(**SEQ, num_virtual_tokens=3, **settings), detail, **own)


def prune(model: PeftModel) -> None:
    """AdaLoRA's own schedule, which leaves two of three ranks on average."""
    for step in range(1, 11):
        model(**tiny_batch(model)).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()


@cache
def cases() -> tuple[Case, ...]:
    """Every row, in the order of the table."""
    return (*lora_cases(), *other_adapters(), *prompt_cases(), *refused_cases())


def lora_cases() -> tuple[Case, ...]:
    """LoRA, DoRA and AdaLoRA."""
    distil = ["q_lin", "v_lin"]
    head = {"modules_to_save": ["classification_head"]}
    ada: dict[str, Any] = {**SEQ, "init_r": 3, "target_r": 2, "total_step": 10}
    return (
        lora("bert"),
        lora("roberta"),
        lora("distilbert", target_modules=distil),
        lora("gpt2", "on Conv1D", fan_in_fan_out=True),
        lora("llama"),
        lora("qwen2"),
        lora("t5", **head),
        lora("bart", **head),
        lora("roberta", "rsLoRA, all linear layers", use_rslora=True, target_modules="all-linear"),
        lora("bert", "embeddings too", target_modules=["word_embeddings", "query"]),
        lora("llama", "embeddings too", target_modules=["embed_tokens", "q_proj"]),
        lora("gpt2", "embeddings too", target_modules=["wte", "c_attn"], fan_in_fan_out=True),
        lora("bert", "`lora_bias`", lora_bias=True),
        lora("bert", '`bias="lora_only"`', bias="lora_only"),
        lora("gpt2", '`bias="lora_only"`, on Conv1D', bias="lora_only", fan_in_fan_out=True),
        lora("bert", '`bias="all"`', bias="all"),
        lora("llama", "a layer in `modules_to_save`", modules_to_save=["mlp"]),
        lora("bert", "first of two adapters active", second="inactive"),
        lora("bert", "second of two adapters active", second="active"),
        lora("bert", "`target_parameters`", target_modules=[], target_parameters=["query.weight"]),
        lora("llama", "trainable tokens", trainable_token_indices={"embed_tokens": [4, 9, 17]}),
        lora("bert", use_dora=True),
        lora("gpt2", "on Conv1D", use_dora=True, fan_in_fan_out=True),
        lora("llama", use_dora=True, target_modules=["q_proj", "down_proj"]),
        lora("bert", "embeddings too", use_dora=True, target_modules=["word_embeddings", "key"]),
        Case("AdaLoRA", "bert", AdaLoraConfig(**ada)),
        Case("AdaLoRA", "t5", AdaLoraConfig(**ada, **head, target_modules=["q"])),
        Case("AdaLoRA", "bert", AdaLoraConfig(**ada, tinit=2, tfinal=2), "ranks pruned", prune),
    )


def other_adapters() -> tuple[Case, ...]:
    """IA3, LN tuning and VeRA."""
    distil = {"target_modules": ["k_lin", "v_lin", "lin2"], "feedforward_modules": ["lin2"]}
    head = {"modules_to_save": ["classification_head"]}
    norms = {"target_modules": ["LayerNorm"]}
    return (
        Case("IA3", "bert", IA3Config(**SEQ)),
        Case("IA3", "distilbert", IA3Config(**SEQ, **distil)),
        Case("IA3", "gpt2", IA3Config(**SEQ, fan_in_fan_out=True), "on Conv1D"),
        Case("IA3", "llama", IA3Config(**SEQ)),
        Case("IA3", "t5", IA3Config(**SEQ, **head)),
        Case("IA3", "bert", IA3Config(**SEQ), "first of two adapters active", second="inactive"),
        Case("LN tuning", "bert", LNTuningConfig(**SEQ, **norms), "LayerNorm"),
        Case("LN tuning", "gpt2", LNTuningConfig(**SEQ), "LayerNorm"),
        Case("LN tuning", "llama", LNTuningConfig(**SEQ), "RMSNorm"),
        Case("LN tuning", "qwen2", LNTuningConfig(**SEQ), "RMSNorm"),
        Case("LN tuning", "gemma2", LNTuningConfig(**SEQ), "RMSNorm that scales by 1 + w"),
        Case("LN tuning", "t5", LNTuningConfig(**SEQ, **head), "RMSNorm"),
        Case("VeRA", "bert", VeraConfig(**SEQ, r=4)),
        Case("VeRA", "llama", VeraConfig(**SEQ, r=4)),
        Case("LoHa", "bert", LoHaConfig(**SEQ, r=2, target_modules=["query"])),
        Case("LoKr", "llama", LoKrConfig(**SEQ, r=2, target_modules=["q_proj"])),
        Case("OFT", "bert", OFTConfig(**SEQ, oft_block_size=8, target_modules=["key"])),
        Case("HRA", "llama", HRAConfig(**SEQ, r=2, target_modules=["v_proj"])),
        Case("FourierFT", "bert", FourierFTConfig(**SEQ, n_frequency=9, target_modules=["key"])),
    )


def prompt_cases() -> tuple[Case, ...]:
    """Prefix, prompt tuning and P-tuning, as they are loaded."""
    network = {"encoder_hidden_size": 8}
    lstm = {**network, "encoder_reparameterization_type": "LSTM"}
    return (
        prompt("Prefix tuning", "bert", PrefixTuningConfig),
        prompt("Prefix tuning", "gpt2", PrefixTuningConfig),
        prompt("Prefix tuning", "llama", PrefixTuningConfig, "grouped heads"),
        prompt("Prefix tuning", "roberta", PrefixTuningConfig, "projected", prefix_projection=True),
        prompt("Prompt tuning", "bert", PromptTuningConfig),
        prompt("Prompt tuning", "gpt2", PromptTuningConfig),
        prompt("Prompt tuning", "llama", PromptTuningConfig),
        prompt("P-tuning", "bert", PromptEncoderConfig, "MLP", **network),
        prompt("P-tuning", "llama", PromptEncoderConfig, "LSTM", **lstm),
    )


def refused_cases() -> tuple[Case, ...]:
    """What has no block, or hides one."""
    hidden = LoraConfig(**SEQ, r=2, target_modules=["query"])
    network: dict[str, Any] = {"encoder_hidden_size": 8, "saved": False, "refused": "mlp_head"}
    tasks: dict[str, Any] = {"num_tasks": 2, "refused": "MULTITASK"}
    return (
        prompt("LoRA", "bert", PrefixTuningConfig, "under a prefix", under=hidden, refused="Lora"),
        prompt("P-tuning", "bert", PromptEncoderConfig, "before it is saved", **network),
        prompt("Multitask prompts", "bert", MultitaskPromptTuningConfig, **tasks),
        Case("MiSS", "bert", MissConfig(**SEQ, r=2, target_modules=["key"]), refused="MissLayer"),
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


def tuned(case: Case) -> PeftModel:
    """Built with peft alone, no weight where it began; `under` is frozen by what comes after it."""
    model = base_of(case.family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for config in filter(None, (case.under, case.config)):
            model = get_peft_model(model, config)
    randomize(model, seed=1)
    if case.train is not None:
        case.train(model)
    return model


def loaded(case: Case, folder: Path) -> PeftModel:
    """Somebody else's checkpoint, written and loaded, as the user guide says."""
    model = tuned(case)
    if not case.saved or case.under is not None:
        return model
    model.save_pretrained(folder)
    trainable = not case.config.is_prompt_learning
    model = PeftModel.from_pretrained(base_of(case.family), folder, is_trainable=trainable)
    if not trainable:
        model.set_adapter(model.active_adapter)
        model.prompt_encoder[model.active_adapter].requires_grad_(True)
    if case.second:
        model.load_adapter(folder, "second", is_trainable=True)
        model.set_adapter("second" if case.second == "active" else "default")
    return model


def batches(case: Case, model: PeftModel) -> list[Batch]:
    """Two batches with padding: in front, where the model answers at the last position."""
    made = tiny_loader(model)
    return [padded_in_front(batch) for batch in made] if case.answers_last else made


def padded_in_front(batch: Batch) -> Batch:
    """The same rows with their padding first."""
    mask = batch["attention_mask"]
    shifts = (mask.shape[1] - mask.sum(1)).tolist()
    rows = zip(batch["input_ids"], shifts, strict=True)
    ids = torch.stack([row.roll(shift) for row, shift in rows])
    return {**batch, "input_ids": ids, "attention_mask": mask.flip(1)}
