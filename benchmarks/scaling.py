"""How fits and predictions cost more, or not, with classes, lengths, ranks, widths and rows.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --output benchmarks/results/scaling.md

Ratios to a plain training step and a plain forward pass of the same model on the same batch, and
what laplace-torch takes, as `cost.py` measures them: every case takes its turn in each round, in
one process. `--device cuda` measures on a GPU, with `--shapes 1b 8b` for Llamas of random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cost import (
    Case,
    batch_of,
    fit,
    forward,
    laplace_fit,
    minilm,
    timed,
    training,
    tuned,
    where,
)
from logits import Batch, Logits
from pages import markdown, publish
from peaks import in_process, rise
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig

from posthoc_bhpeft import (
    BayesianPeft,
    FixedPrecision,
    KroneckerGGN,
    Linearized,
    RandomSigns,
    Sampled,
    bayesianize,
)
from posthoc_bhpeft.interop.laplace import LaplaceLoader

LLAMAS = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
SAMPLES = 10
# Classes below which laplace-torch's linearised predictive is measured: it takes 100 passes.
FEW = 4


@dataclass(frozen=True)
class Cell:
    """One model and one batch.

    Attributes:
        n_classes: `C`.
        rows: Of a batch.
        tokens: Of a row.
        rank: Of LoRA.
        width: Of a network of one layer with random weights; MiniLM where it is `None`.
        shape: Of a Llama with random weights.
        kept: Eigenvectors of wide sides; all where it is `None`.
        batches: Of a fit.
    """

    n_classes: int = 3
    rows: int = 16
    tokens: int = 64
    rank: int = 8
    width: int | None = None
    shape: str | None = None
    kept: int | None = None
    batches: int = 8


AXES: Mapping[str, Mapping[str, Cell]] = {
    "classes": {str(n): Cell(n_classes=n) for n in (2, 3, 4, 20, 77, 150)},
    "tokens of a row": {str(n): Cell(tokens=n, rows=8) for n in (32, 128, 512)},
    "rank of LoRA": {str(n): Cell(rank=n) for n in (4, 64)},
    "width": {
        f"{width}{'' if kept is None else f', rank {kept} kept'}": Cell(
            rows=8, tokens=32, width=width, kept=kept, batches=4
        )
        for width, kept in ((384, None), (768, None), (1536, 64), (4096, 64))
    },
    "batches of a fit": {str(n): Cell(batches=n) for n in (2, 32)},
}


def model_of(cell: Cell, *, hybrid: bool = True) -> PeftModel:
    """The model of a cell, nothing at 0."""
    if cell.shape is not None:
        config = LlamaConfig(
            **LLAMAS[cell.shape],
            num_attention_heads=32,
            num_key_value_heads=8,
            num_labels=cell.n_classes,
            pad_token_id=0,
        )
        base = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
        lora = LoraConfig(task_type="SEQ_CLS", r=cell.rank, target_modules="all-linear")
        return get_peft_model(base, lora).eval()
    if cell.width is None:
        return minilm(cell.n_classes, hybrid=hybrid, rank=cell.rank)
    config = BertConfig(
        hidden_size=cell.width,
        intermediate_size=4 * cell.width,
        num_hidden_layers=1,
        num_attention_heads=cell.width // 64,
        vocab_size=1000,
        num_labels=cell.n_classes,
    )
    base = AutoModelForSequenceClassification.from_config(config)
    return tuned(base, hybrid=hybrid, rank=cell.rank)


def cases_of(cell: Cell, device: str) -> dict[str, tuple[Case, int]]:
    """What is timed in a cell, with the batches that each case runs over."""
    model = model_of(cell).to(device)
    batch = {
        name: tensor.to(device)
        for name, tensor in batch_of(model, rows=cell.rows, tokens=cell.tokens).items()
    }
    kept = {} if cell.kept is None else {"rank": cell.kept, "wide": 4 * cell.kept}
    default = KroneckerGGN(**kept)
    bayes = bayesianize(
        model, [batch], curvature=default, prior=FixedPrecision(10.0), progress=False
    )

    def fitted(curvature: KroneckerGGN) -> tuple[Case, int]:
        return lambda: fit(model, batch, curvature, cell.batches), cell.batches

    return {
        "training": (lambda: training(model, batch, 2), 2),
        "forward": (lambda: forward(model, batch), 1),
        "fit": fitted(default),
        "fit, one sign": fitted(replace(default, directions=RandomSigns())),
        "predict": (lambda: bayes.predict(batch, Linearized()), 1),
        "ten samples": (lambda: bayes.predict(batch, Sampled(SAMPLES - 1)), 1),
    }


COLUMNS = (
    ("fit", "training"),
    ("fit, one sign", "training"),
    ("predict", "forward"),
    ("ten samples", "forward"),
)


def medians(
    seconds: Mapping[str, Sequence[float]], columns: Sequence[tuple[str, str]]
) -> list[str]:
    """The median over rounds of the ratio within a round, a column each; a dash without it."""
    texts = []
    for case, unit in columns:
        pairs = zip(seconds.get(case, ()), seconds[unit], strict=False)
        ratios = [one / other for one, other in pairs]
        texts.append(f"{statistics.median(ratios):.2f}" if ratios else "–")
    return texts


def finished_clock() -> float:
    """Seconds, once the accelerator has done what it was told to."""
    torch.accelerator.synchronize()
    return time.perf_counter()


def axis_table(axis: str, cells: Mapping[str, Cell], rounds: int, device: str) -> str:
    """A row a cell."""
    clock = time.process_time if device == "cpu" else finished_clock
    rows = []
    for name, cell in cells.items():
        seconds = timed(cases_of(cell, device), rounds, clock)
        step = statistics.median(seconds["training"])
        rows.append(said([name, f"{step:.3f}", *medians(seconds, COLUMNS)]))
    return markdown([axis, "training, s", *heads(COLUMNS)], rows)


def heads(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Which ratio stands in each column."""
    return [f"{case} ÷ {unit}" for case, unit in columns]


def said(row: list[str]) -> list[str]:
    """The row, told as soon as it is known: a table takes long."""
    print(" | ".join(row), file=sys.stderr, flush=True)
    return row


def beside_laplace(n_classes: int) -> tuple[PeftModel, Batch, BayesianPeft, Any]:
    """LoRA alone, which is what laplace-torch takes: both posteriors of one batch."""
    from laplace import Laplace

    model = minilm(n_classes, hybrid=False)
    batch = batch_of(model)
    bayes = bayesianize(model, [batch], prior=FixedPrecision(10.0), progress=False)
    la = Laplace(
        Logits(model),
        "classification",
        subset_of_weights="all",
        hessian_structure="kron",
        prior_precision=10.0,
    )
    la.fit(LaplaceLoader([batch]))
    return model, batch, bayes, la


def laplace_cases(n_classes: int) -> dict[str, tuple[Case, int]]:
    """Fits of both, and predictions where laplace-torch's own fit into memory."""
    model, batch, bayes, la = beside_laplace(n_classes)
    kron, one_sign = KroneckerGGN(), KroneckerGGN(RandomSigns())
    cases: dict[str, tuple[Case, int]] = {
        "training": (lambda: training(model, batch, 2), 2),
        "forward": (lambda: forward(model, batch), 1),
        "our fit": (lambda: fit(model, batch, kron, 8), 8),
        "our fit, one sign": (lambda: fit(model, batch, one_sign, 8), 8),
        "laplace-torch's fit": (lambda: laplace_fit(model, batch), 1),
        "our predict": (lambda: bayes.predict(batch, Linearized()), 1),
        "our ten samples": (lambda: bayes.predict(batch, Sampled(SAMPLES - 1)), 1),
        "laplace-torch's ten samples": (
            lambda: la(batch, pred_type="nn", link_approx="mc", n_samples=SAMPLES),
            1,
        ),
    }
    if n_classes < FEW:
        cases["laplace-torch's linearised"] = lambda: la(batch, link_approx="probit"), 1
    return cases


LAPLACE_COLUMNS = (
    ("our fit", "training"),
    ("our fit, one sign", "training"),
    ("laplace-torch's fit", "training"),
    ("laplace-torch's fit", "our fit"),
    ("laplace-torch's fit", "our fit, one sign"),
    ("our predict", "forward"),
    ("laplace-torch's linearised", "forward"),
    ("laplace-torch's linearised", "our predict"),
    ("our ten samples", "forward"),
    ("laplace-torch's ten samples", "forward"),
)


def laplace_table(rounds: int) -> str:
    """Ours and laplace-torch's on LoRA alone."""
    rows = []
    for n_classes in (2, 3, 20):
        seconds = timed(laplace_cases(n_classes), rounds)
        rows.append(said([str(n_classes), *medians(seconds, LAPLACE_COLUMNS)]))
    return markdown(["classes", *heads(LAPLACE_COLUMNS)], rows)


def memory_cases(cell: Cell) -> dict[str, Callable[[], Case]]:
    """What is weighed, each made in a process of its own."""

    def hybrid(run: Callable[[PeftModel, Batch], object]) -> Callable[[], Case]:
        def make() -> Case:
            model = model_of(cell)
            batch = batch_of(model, rows=cell.rows, tokens=cell.tokens)
            run(model, {name: tensor[:1] for name, tensor in batch.items()})
            return lambda: run(model, batch)

        return make

    def predicted() -> Case:
        model = model_of(cell)
        batch = batch_of(model, rows=cell.rows, tokens=cell.tokens)
        few = {name: tensor[:1] for name, tensor in batch.items()}
        bayes = bayesianize(model, [few], prior=FixedPrecision(10.0), progress=False)
        bayes.predict(few)
        return lambda: bayes.predict(batch)

    def lora(ours: bool) -> Callable[[], Case]:
        def make() -> Case:
            _, batch, bayes, la = beside_laplace(cell.n_classes)
            few = {name: tensor[:1] for name, tensor in batch.items()}
            if ours:
                bayes.predict(few)
                return lambda: bayes.predict(batch)
            la(few, link_approx="probit")
            return lambda: la(batch, link_approx="probit")

        return make

    kron = KroneckerGGN()
    return {
        "training": hybrid(training),
        "fit, one sign": hybrid(lambda m, b: fit(m, b, KroneckerGGN(RandomSigns()), 2)),
        "fit": hybrid(lambda m, b: fit(m, b, kron, 2)),
        "fit of ten times the rows": hybrid(lambda m, b: fit(m, b, kron, 20)),
        "predict": predicted,
        "predict, LoRA": lora(True),
        "laplace-torch's linearised, LoRA": lora(False),
    }


WEIGHED = {
    "16 rows of 64 tokens": Cell(),
    "32 rows of 128 tokens": Cell(rows=32, tokens=128),
}


def memory_table() -> str:
    """Peaks above the loaded model in MiB, each in a process of its own."""
    names = list(memory_cases(Cell()))
    rows = []
    for size, cell in WEIGHED.items():
        texts, unit = [], 0.0
        for name in names:
            if "LoRA" in name and cell != Cell():
                texts.append("–")
                continue
            peak = in_process(__file__, "--weigh", size, name)
            unit = unit or peak
            texts.append(f"{peak:.0f} ({peak / unit:.2f})")
        rows.append(said([size, *texts]))
    return markdown(["peak, MiB", *names], rows)


def report(arguments: argparse.Namespace) -> str:
    """Measure everything and write it up."""
    parts = [
        "# How cost grows",
        f"""{where(arguments.device)}
MiniLM with the default hybrid, 3 classes, 16 rows of 64 tokens, fits over 8 batches, float32, but \
for what the row says (lengths: 8 rows; widths: one layer of random weights, 8 rows of 32 tokens, \
4 batches). Each figure is the median over {arguments.rounds} rounds of the ratio within a round. \
*Fit* and *predict* are the defaults: up to 4 classes the fit takes every contrast and is exact, \
above it two random signs; *one sign* is `RandomSigns()`, *ten samples* are ten forward passes at \
drawn weights. A fit looks once, on its first batch, whether rows are apart: the last axis says \
how little is left of that.""",
    ]
    axes = dict(AXES) if arguments.axes is None else {a: AXES[a] for a in arguments.axes}
    if arguments.shapes:
        axes["shape"] = {
            name: Cell(shape=name, rows=8, tokens=256, kept=32) for name in arguments.shapes
        }
    for axis, cells in axes.items():
        parts.append(f"## {axis.capitalize()}")
        parts.append(axis_table(axis, cells, arguments.rounds, arguments.device))
    if arguments.device == "cpu" and arguments.axes is None:
        parts.append("## Beside laplace-torch")
        parts.append("LoRA alone, which is what its Kronecker backend takes; curvlinops inside.")
        parts += [laplace_table(arguments.rounds), "## Memory"]
        parts += ["Above the loaded model, in brackets over training's.", memory_table()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), help="these only")
    parser.add_argument("--shapes", nargs="+", choices=list(LLAMAS), default=[])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weigh:
        size, name = arguments.weigh
        print(json.dumps(rise(memory_cases(WEIGHED[size])[name]())))
        return
    publish(report(arguments), arguments.output)


if __name__ == "__main__":
    main()
