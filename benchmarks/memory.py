"""How near is `estimate` to what a process takes? Peaks of resident memory, phase by phase.

    python benchmarks/memory.py --output benchmarks/results/memory.md

On Linux and a CPU, one thread, each model in a process of its own. `wide` is one Llama layer of
random weights, 4096 wide, with LoRA, its factors in low rank.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cost import batch_of, minilm
from logits import Batch
from pages import markdown, origin, publish
from peaks import in_process, peak_of, resident
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

from posthoc_bhpeft import (
    BayesianPeft,
    Categorical,
    DiagonalGGN,
    GaussianPrior,
    KroneckerGGN,
    LeaveOneOut,
    Linearized,
    discover,
    estimate,
)
from posthoc_bhpeft.api import unit_posterior
from posthoc_bhpeft.blocks import observing
from posthoc_bhpeft.curvature import fit_curvature
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.selection import LaplaceFit, Passes, PriorChoice

CLASSES, BATCHES = 3, 32
PHASES = ("summing over the data", "decomposing", "choosing the prior", "predicting a batch")


def wide() -> PeftModel:
    """One Llama layer, 4096 wide."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=4096,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_labels=CLASSES,
        pad_token_id=0,
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["q_proj", "v_proj"])
    return get_peft_model(AutoModelForSequenceClassification.from_config(config), lora).eval()


@dataclass(frozen=True)
class Case:
    """A model and what it is fitted on.

    Attributes:
        label: For people.
        build: Makes the model.
        rows: Of a batch.
        tokens: Of a row.
        rank: Of wide factors; whole ones where it is `None`.
    """

    label: str
    build: Callable[[], PeftModel]
    rows: int
    tokens: int
    rank: int | None = None


CASES: Mapping[str, Case] = {
    "minilm": Case("MiniLM, hybrid", lambda: minilm(CLASSES), 16, 64),
    "wide": Case("one Llama layer 4096 wide, LoRA, rank 64", wide, 4, 32, 64),
}
# Of a phase: the peak above the loaded model, and what it was estimated to be, in MiB.
Peaks = dict[str, tuple[float, float]]


def measure(case: Case) -> Peaks:
    """Fit, decompose and predict in this process, each beside its estimate."""
    torch.set_num_threads(1)
    model = case.build()
    sizes = {"rows": case.rows, "tokens": case.tokens}
    loader = [batch_of(model, seed=seed, **sizes) for seed in range(BATCHES)]
    blocks, curvature = discover(model), KroneckerGGN(rank=case.rank)
    expected = estimate(model, loader, curvature=curvature).phases
    # Once before: what libraries load at their first call is none of ours.
    fit_curvature(model, blocks, loader[:1], Categorical(), DiagonalGGN())
    gc.collect()
    start = resident("VmRSS")
    fitted, fit = peak_of(lambda: fit_curvature(model, blocks, loader, Categorical(), curvature))
    prior = GaussianPrior.isotropic(blocks, 1.0)
    posterior, decompose = peak_of(lambda: unit_posterior(model, blocks, (), fitted, prior))
    bayes = BayesianPeft(model, posterior, Categorical(), Linearized(), curvature, "")
    _, choose = peak_of(lambda: chosen(posterior, model, loader))
    _, predict = peak_of(lambda: bayes.predict(loader[0]))
    pairs = zip(PHASES, (fit, decompose, choose, predict), strict=True)
    return {phase: (peak - start, expected[phase] / 2**20) for phase, peak in pairs}


def chosen(posterior: Posterior, model: PeftModel, loader: Sequence[Batch]) -> PriorChoice:
    """What the default rule chooses."""
    likelihood = Categorical()
    passes = Passes(model, posterior.blocks, posterior.bases, likelihood, observing, False)
    evidence = posterior.evidence()
    fit = LaplaceFit(evidence, likelihood, passes.spectra, passes.gradients, loader)
    return LeaveOneOut().choose(fit)


def table(found: Mapping[str, Peaks]) -> str:
    """A row a phase of a model."""
    rows = [
        [name, phase, f"{real:.0f}", f"{told:.0f}", f"{told / real:.2f}"]
        for name, peaks in found.items()
        for phase, (real, told) in peaks.items()
    ]
    return markdown(["model", "phase", "peak, MiB", "estimated, MiB", "estimated ÷ peak"], rows)


def page(found: Mapping[str, Peaks]) -> str:
    """The page that is committed."""
    sizes = "; ".join(f"{c.label}: {c.rows} rows of {c.tokens} tokens" for c in CASES.values())
    return f"""# The estimate of memory beside peaks

{origin("torch", "transformers", "peft")}; CPU, one thread. \
Resident memory of the process above the loaded model, at its peak in each phase, beside what \
`estimate` says of it. {BATCHES} batches ({sizes}), {CLASSES} classes, float32, whole factors but \
where a rank is named.

{table(found)}
"""


def main() -> None:
    """Measure every model, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(CASES[options.case])))
        return
    found = {one.label: in_process(__file__, "--case", name) for name, one in CASES.items()}
    publish(page(found), options.output)


if __name__ == "__main__":
    main()
