"""How near is `estimate` to what a process takes? Peaks of resident memory, phase by phase.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/memory.py minilm
    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/memory.py wide --rank 64

On Linux and a CPU. The variable makes the C library give memory back as soon as a tensor is gone;
without it, what is measured is what it holds back. `wide` is one Llama layer of random weights,
4096 wide, with LoRA.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from posthoc_bhpeft import (
    BayesianPeft,
    Categorical,
    DiagonalGGN,
    GaussianPrior,
    HybridConfig,
    KroneckerGGN,
    Linearized,
    discover,
    estimate,
)
from posthoc_bhpeft.api import unit_posterior
from posthoc_bhpeft.checkpoints import load_base
from posthoc_bhpeft.curvature import fit_curvature

MIB = 2**20
Result = TypeVar("Result")


def minilm() -> nn.Module:
    """The packaged MiniLM with LoRA, adapters and prefix, untrained."""
    base = load_base("minilm", label_names=["a", "b", "c"])
    return get_peft_model(base, HybridConfig(task_type="SEQ_CLS")).eval()


def wide() -> nn.Module:
    """One Llama layer, 4096 wide."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=4096,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_labels=3,
        pad_token_id=0,
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["q_proj", "v_proj"])
    return get_peft_model(AutoModelForSequenceClassification.from_config(config), lora).eval()


def batches(rows: int, length: int) -> list[dict[str, Any]]:
    """Three batches of made-up tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(1, 1000, (rows, length), generator=generator),
            "attention_mask": torch.ones(rows, length, dtype=torch.long),
            "labels": torch.randint(0, 3, (rows,), generator=generator),
        }
        for _ in range(3)
    ]


def resident(name: str) -> int:
    """A line of the kernel's record of this process, in bytes: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def peak_of(run: Callable[[], Result]) -> tuple[Result, int]:
    """What `run` returns, and the most memory while it ran."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return run(), resident("VmHWM")


def main() -> None:
    """Fit, decompose and predict, each beside its estimate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["minilm", "wide"])
    parser.add_argument("--rank", type=int, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = minilm() if asked.model == "minilm" else wide()
    loader = batches(16, 64) if asked.model == "minilm" else batches(4, 32)
    blocks, curvature = discover(model), KroneckerGGN(rank=asked.rank)
    expected = estimate(model, loader, curvature=curvature).phases
    # Once before: what libraries load at their first call is none of ours.
    fit_curvature(model, blocks, loader[:1], Categorical(), DiagonalGGN())
    gc.collect()
    start = resident("VmRSS")
    fitted, fit = peak_of(lambda: fit_curvature(model, blocks, loader, Categorical(), curvature))
    prior = GaussianPrior.isotropic(blocks, 1.0)
    posterior, decompose = peak_of(lambda: unit_posterior(model, blocks, (), fitted, prior))
    bayes = BayesianPeft(model, posterior, Categorical(), Linearized(), curvature, "")
    _, predict = peak_of(lambda: bayes.predict(loader[0]))
    names = ("summing over the data", "decomposing", "predicting a batch")
    for name, peak in zip(names, (fit, decompose, predict), strict=True):
        real, told = peak - start, expected[name]
        sys.stdout.write(
            f"{name}: {real / MIB:.0f} MiB, estimated {told / MIB:.0f}, {told / real:.2f}\n"
        )


if __name__ == "__main__":
    main()
