"""Tiny random models for tasks, their bases in folders, and batches for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import nn

from posthoc_bhpeft import HybridConfig
from posthoc_bhpeft.batches import forward
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.tasks import AnswerTokens, TaskModel
from tests.contracts import any_direction, observations
from tests.hybrid.families import BEGIN, FIRST_WORD, PAD, VOCABULARY, tiny_config
from tests.models import wrap
from tests.oracles import per_sample

#: Tokens of four choices in the vocabulary of the tiny models.
ANSWERS = AnswerTokens((5, 9, 11, 20), ("A", "B", "C", "D"))


@cache
def _folders() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="task-bases-")


@cache
def base_folder(auto: str, family: str, **settings: Any) -> Path:
    """A folder with a tiny base of an auto class, all its weights visible; made once."""
    config = tiny_config(family, **settings)
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    marks = "-".join(f"{name}={value}" for name, value in sorted(settings.items()))
    folder = Path(_folders().name) / f"{auto}-{family}-{marks}"
    model.save_pretrained(folder)
    return folder


def tuned(auto: str, family: str, config: Any, **settings: Any) -> PeftModel:
    """A random adapter on a tiny base that lies in a folder, float64."""
    folder = base_folder(auto, family, **settings)
    return wrap(getattr(transformers, auto).from_pretrained(folder, dtype=torch.float64), config)


def hybrid(task_type: str = "CAUSAL_LM", **settings: Any) -> HybridConfig:
    """LoRA, adapters and prefix, as small as they go."""
    sizes = {"r": 2, "bottleneck_size": 3, "num_virtual_tokens": 3, **settings}
    return HybridConfig(task_type=task_type, **sizes)


def lora(task_type: str = "CAUSAL_LM", *targets: str, **settings: Any) -> LoraConfig:
    """peft's own LoRA."""
    chosen = list(targets or ("q_proj", "v_proj"))
    return LoraConfig(task_type=task_type, r=2, target_modules=chosen, **settings)


def language_model(family: str = "llama", config: Any = None, **settings: Any) -> PeftModel:
    """A tuned causal language model."""
    return tuned("AutoModelForCausalLM", family, config or hybrid(), **settings)


def asked(family: str = "llama", config: Any = None, **settings: Any) -> TaskModel:
    """The same, asked for one of four letters."""
    return TaskModel(language_model(family, config, **settings), ANSWERS).eval()


def prompts(rows: int = 4, *, left: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, the longest first, padded to nine tokens, with labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, VOCABULARY, (rows, 9), generator=generator)
    ids[:, 0] = BEGIN
    lengths = [9 - (2 * row) % 7 for row in range(rows)]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    ids = ids.where(mask.bool(), torch.tensor(PAD))
    if left:
        shifts = [9 - length for length in lengths]
        ids = torch.stack([row.roll(by) for row, by in zip(ids, shifts, strict=True)])
        mask = mask.flip(1)
    labels = torch.randint(0, 4, (rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each prompt in a batch of its own, without padding."""
    rows = []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        cut = {n: v[row : row + 1] for n, v in batch.items()}
        for name in ("input_ids", "attention_mask"):
            cut[name] = cut[name][:, mask]
        rows.append(cut)
    return rows


def questions(
    rows: int = 3, choices: int = 4, positions: int = 5, *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """One text a choice, `(N, K, T)`, of different lengths, with labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, choices, positions)
    ids = torch.randint(FIRST_WORD, VOCABULARY, shape, generator=generator)
    ids[..., 0] = BEGIN
    lengths = torch.randint(2, positions + 1, shape[:2], generator=generator)
    mask = (torch.arange(positions) < lengths[..., None]).long()
    return {
        "input_ids": ids.where(mask.bool(), torch.tensor(PAD)),
        "attention_mask": mask,
        "labels": torch.randint(0, choices, (rows,), generator=generator),
    }


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


def outputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model says about a batch."""
    with torch.no_grad():
        result = model(**inputs_of(batch))
    return getattr(result, "logits", result)


def check_gradients(model: nn.Module, batch: dict[str, torch.Tensor], seed: int = 0) -> None:
    """Gradients a row of every block are those of autograd, one backward pass a row."""
    blocks = discover(model)
    direction = any_direction(model, batch, seed)
    seen = observations(model, blocks, batch, direction)
    scalars = (forward(model, inputs_of(batch)) * direction).sum(1)
    for name, exact in per_sample(model, blocks, scalars).items():
        gradient = seen[name].gradient()
        assert exact.norm() > 0, f"{name} has no effect on the outputs of this batch"
        assert gradient.shape == exact.shape
        # The softmax of some attention is float32 inside.
        assert torch.allclose(gradient, exact, rtol=0, atol=1e-7 * float(exact.abs().max())), name
        assert torch.allclose(gradient.sum(0), exact.sum(0), atol=1e-7 * float(exact.abs().sum()))
