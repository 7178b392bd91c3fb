"""What do fitting and predicting cost, in units of plain training and a plain forward pass?

    OMP_NUM_THREADS=1 python benchmarks/cost.py --output benchmarks/results/cost.md

MiniLM (real weights) with LoRA, adapters and prefix, texts of 64 tokens. Times are ratios a batch:
every case takes its turn in each round, in one process, and the ratio is the median over rounds of
the ratio within a round, so that what else the machine does hits all cases alike. A fit runs over
several batches, as fits do: what it does once (find the blocks, look whether rows are apart) is
shared by them. Memory is the rise of the resident set above the loaded model, at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from logits import Batch, Logits
from pages import markdown, origin, publish
from peaks import in_process, rise
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from posthoc_bhpeft import (
    BayesianPeft,
    Categorical,
    Contrasts,
    FixedPrecision,
    HybridConfig,
    KroneckerGGN,
    Linearized,
    RandomSigns,
    bayesianize,
    discover,
    estimate,
)
from posthoc_bhpeft.checkpoints import resolve_model
from posthoc_bhpeft.curvature import fit_curvature

TOKENS, ROWS, FIT_BATCHES = 64, 16, 16
Case = Callable[[], object]


def minilm(n_classes: int, *, hybrid: bool = True, rank: int = 8) -> PeftModel:
    """MiniLM with the default hybrid, or with plain LoRA of the same rank; nothing starts at 0."""
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_model("minilm"), num_labels=n_classes
    )
    return tuned(base, hybrid=hybrid, rank=rank)


def tuned(base: PreTrainedModel, *, hybrid: bool, rank: int = 8) -> PeftModel:
    """A base with the default hybrid or plain LoRA; nothing starts at 0."""
    config = (
        HybridConfig(task_type="SEQ_CLS", r=rank)
        if hybrid
        else LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=["query", "value"])
    )
    model = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(model: PeftModel, *, rows: int = ROWS, tokens: int = TOKENS, seed: int = 0) -> Batch:
    """Random tokens, no padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (rows, tokens), generator=generator)
    labels = torch.randint(0, model.config.num_labels, (rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def training(model: PeftModel, batch: Batch, n_batches: int = 1) -> None:
    """Plain forward and backward passes with gradients of everything trainable."""
    for _ in range(n_batches):
        model.zero_grad()
        model(**batch).loss.backward()


def forward(model: PeftModel, batch: Batch) -> None:
    """A plain forward pass without gradients."""
    with torch.no_grad():
        model(**batch)


def fit(model: PeftModel, batch: Batch, curvature: KroneckerGGN, n_batches: int = 1) -> None:
    """The curvature of so many batches, from finding the blocks to the finished factors."""
    fit_curvature(model, discover(model), [batch] * n_batches, Categorical(), curvature)


def bayesianized(model: PeftModel, batch: Batch) -> BayesianPeft:
    """A posterior to predict with."""
    return bayesianize(model, [batch], prior=FixedPrecision(10.0), progress=False)


def laplace_fit(model: PeftModel, batch: Batch) -> None:
    """laplace-torch's Kronecker factors of one batch, from its default backend."""
    from laplace.curvature import CurvlinopsGGN

    CurvlinopsGGN(Logits(model), "classification").kron(batch, batch["labels"], N=ROWS)


def timed(
    cases: Mapping[str, tuple[Case, int]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds a batch of every case in every round, after one round to warm up.

    By default processor time of this process: on one thread it is what the clock shows on an idle
    machine, and it does not count the time that others hold the processor.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(rounds + 1):
        for name, (case, n_batches) in cases.items():
            start = clock()
            case()
            if index:
                found[name].append((clock() - start) / n_batches)
    return found


def ratio(seconds: Mapping[str, list[float]], case: str, unit: str) -> list[float]:
    """The ratio of two cases in each round."""
    return [a / b for a, b in zip(seconds[case], seconds[unit], strict=True)]


def measure_times(rounds: int) -> list[tuple[str, str, list[float], float | None]]:
    """Name, unit, ratio in each round, and the target, where there is one."""
    two, three, plain = minilm(2), minilm(3), minilm(3, hybrid=False)
    b2, b3 = batch_of(two), batch_of(three)
    contrasts, signs = KroneckerGGN(Contrasts()), KroneckerGGN(RandomSigns())
    bayes = bayesianized(three, b3)
    one_pass = Linearized(max_passes=1)
    compiled = torch.compile(three)

    def trained(model: PeftModel, batch: Batch) -> tuple[Case, int]:
        return lambda: training(model, batch, 4), 4

    def fitted(model: PeftModel, batch: Batch, curvature: KroneckerGGN) -> tuple[Case, int]:
        return lambda: fit(model, batch, curvature, FIT_BATCHES), FIT_BATCHES

    def repeated(case: Case) -> tuple[Case, int]:
        return lambda: [case() for _ in range(4)], 4

    seconds = timed(
        {
            "training, 2 classes": trained(two, b2),
            "exact, 2 classes": fitted(two, b2, contrasts),
            "training, 3 classes": trained(three, b3),
            "signs": fitted(three, b3, signs),
            "exact, 3 classes": fitted(three, b3, contrasts),
            "forward": repeated(lambda: forward(three, b3)),
            "forward, compiled": repeated(lambda: forward(compiled, b3)),
            "training, compiled": trained(compiled, b3),
            "predict": repeated(lambda: bayes.predict(b3, Linearized())),
            "predict, one direction": repeated(lambda: bayes.predict(b3, one_pass)),
            "training, LoRA": trained(plain, b3),
            "laplace-torch": (lambda: laplace_fit(plain, b3), 1),
            "exact, LoRA": fitted(plain, b3, contrasts),
        },
        rounds,
    )

    def row(name: str, case: str, unit: str, target: float | None = None) -> Any:
        return name, unit, ratio(seconds, case, unit), target

    return [
        row("fit, random signs, 3 classes", "signs", "training, 3 classes", 1.1),
        row("fit, exact, 2 classes", "exact, 2 classes", "training, 2 classes", 1.1),
        row("fit, exact, 3 classes", "exact, 3 classes", "training, 3 classes", 2.2),
        row("fit on LoRA alone, exact, 3 classes", "exact, LoRA", "training, LoRA"),
        row("laplace-torch's fit on LoRA alone, 3 classes", "laplace-torch", "training, LoRA"),
        row("predict, linearised, 3 classes", "predict", "forward", 3.2),
        row("predict, linearised, one direction a row", "predict, one direction", "forward"),
        row("plain forward, torch.compile", "forward, compiled", "forward"),
        row("training, torch.compile", "training, compiled", "training, 3 classes"),
    ]


PLAIN, LEARNING = "forward and backward", "training, with dropout"
MEMORY = (PLAIN, LEARNING, "fit, random signs", "fit, exact", "predict")
SHAPES = ((ROWS, TOKENS), (2 * ROWS, 2 * TOKENS))
"""Rows and tokens of a batch whose memory is measured."""


def memory_case(name: str, rows: int, tokens: int) -> float:
    """The peak of one case, in this process, once its libraries are warm."""
    model = minilm(3)
    batch = batch_of(model, rows=rows, tokens=tokens)
    bayes = bayesianized(model, {key: value[:1] for key, value in batch.items()})
    cases: dict[str, Callable[[Batch], object]] = {
        PLAIN: lambda b: training(model, b),
        LEARNING: lambda b: training(model.train(), b),
        "fit, random signs": lambda b: fit(model, b, KroneckerGGN(RandomSigns()), 2),
        "fit, exact": lambda b: fit(model, b, KroneckerGGN(Contrasts()), 2),
        "predict": lambda b: bayes.predict(b, Linearized()),
    }
    cases[name]({key: value[:1] for key, value in batch.items()})
    model.eval()
    return rise(lambda: cases[name](batch))


Shape = tuple[int, int]


def measure_memory() -> dict[Shape, dict[str, float]]:
    """Peaks in MiB by shape of a batch and case, each in a process of its own."""
    return {
        (rows, tokens): {
            name: in_process(__file__, "--memory-case", name, str(rows), str(tokens))
            for name in MEMORY
        }
        for rows, tokens in SHAPES
    }


def summed() -> float:
    """Bytes of the sums while a fit goes by, in MiB."""
    model = minilm(3)
    return estimate(model, [batch_of(model)]).factor_phases["summing over the data"] / 2**20


def verdict(value: float, target: float | None) -> str:
    """The target and whether it was met."""
    if target is None:
        return "–"
    return f"at most {target:g}: {'met' if value <= target else '**missed**'}"


def times_table(found: Sequence[tuple[str, str, list[float], float | None]]) -> str:
    """A row a case: median and quartiles over rounds."""
    rows = []
    for name, unit, ratios, target in found:
        low, middle, high = statistics.quantiles(ratios, n=4)
        told = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, unit, told, verdict(middle, target)])
    return markdown(["case", "in units of", "ratio", "target"], rows)


def memory_table(found: Mapping[Shape, Mapping[str, float]]) -> str:
    """A row a case of a shape, in units of one pass as fits make it, and of training."""
    rows = []
    for (n_rows, tokens), peaks in found.items():
        for name, peak in peaks.items():
            times = peak / peaks[LEARNING]
            target = 1.1 if name.startswith("fit") else None
            case = f"{name}, {n_rows} rows of {tokens} tokens"
            plain = f"{peak / peaks[PLAIN]:.2f}"
            rows.append([case, f"{peak:.0f} MiB", plain, f"{times:.2f}", verdict(times, target)])
    header = ["case", "peak above the loaded model", f"over that of {PLAIN}", "over training's"]
    return markdown([*header, "target, of training"], rows)


def report(rounds: int) -> str:
    """Measure everything and write it up."""
    return f"""# Cost of fitting and predicting

{where()}
MiniLM with the default hybrid (LoRA, adapters, prefix, head), {ROWS} rows of {TOKENS} tokens, \
float32; fits over {FIT_BATCHES} batches; medians over {rounds} rounds, in brackets the quartiles.

{times_table(measure_times(rounds))}

{memory_table(measure_memory())}

Training has the dropout of the model's config on, as a trainer has; *forward and backward* is the
same pass without, as fits make it. Sums of the curvature take {summed():.0f} MiB, beside a batch of
any size.
"""


def where(device: str = "CPU") -> str:
    """The command, the versions of what is compared, and the device."""
    versions = origin("torch", "transformers", "peft", "laplace-torch")
    return f"{versions}; {device}, {torch.get_num_threads()} thread  "


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory-case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_case:
        name, rows, tokens = arguments.memory_case
        print(json.dumps(memory_case(name, int(rows), int(tokens))))
        return
    publish(report(arguments.rounds), arguments.output)


if __name__ == "__main__":
    main()
