"""Tuned models whose base lies in a folder, so that a checkpoint can rebuild them from nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from posthoc_bhpeft import BayesianPeft, HybridConfig, bayesianize
from tests.hybrid.families import tiny_loader, tiny_model
from tests.models import wrap

LABELS = {0: "bad", 1: "fair", 2: "good"}


@cache
def _folders() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="bases-")


@cache
def base_folder(family: str = "bert") -> Path:
    """A folder with a tiny base model, made once in a process."""
    folder = Path(_folders().name) / family
    tiny_model(family).save_pretrained(folder)
    return folder


def tuned(
    family: str = "bert", config: Any = None, *, seed: int = 0, **overrides: Any
) -> PeftModel:
    """A tuned tiny model with names for its labels, its base in `base_folder`."""
    base = tiny_model(family, **overrides)
    base.config.id2label = dict(LABELS)
    base.config.label2id = {name: index for index, name in LABELS.items()}
    base.name_or_path = base.config._name_or_path = str(base_folder(family))
    if config is None:
        config = HybridConfig(task_type="SEQ_CLS", r=2, bottleneck_size=4, num_virtual_tokens=3)
    return wrap(base, config, seed)


def plain_lora() -> LoraConfig:
    """peft's own LoRA, nothing of ours in it."""
    return LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])


def fitted(model: PeftModel | None = None, **settings: Any) -> BayesianPeft:
    """A posterior over eight rows."""
    model = tuned() if model is None else model
    return bayesianize(model, tiny_loader(model), progress=False, **settings)


def numbers(bayes: BayesianPeft) -> dict[str, Tensor]:
    """Everything that must survive a round trip, as tensors."""
    batch = tiny_loader(bayes.model, 1)[0]
    prediction = bayes.predict(batch)
    found = {name: column for name, column in prediction.columns().items() if column is not None}
    drawn = bayes.sample(2, torch.Generator().manual_seed(3))
    return {
        **found,
        **{f"sample/{name}": tensor for name, tensor in drawn.items()},
        "evidence": torch.tensor(bayes.log_marginal_likelihood(), dtype=torch.float64),
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to the last bit."""
    assert list(one) == list(other)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
