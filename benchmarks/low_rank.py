"""What do factors in low rank lose? Ranks of a fitted posterior's wide factors, on real rows.

    python benchmarks/low_rank.py CHECKPOINT --data FOLDER --output benchmarks/results/low_rank.md

CHECKPOINT holds a posterior with whole Kronecker factors (`bhpeft train`, `bhpeft fit`). Its wide
sides are sketched as `KroneckerGGN(rank=...)` sketches them, with and without the trace of what is
left out, and rows are predicted with each.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc_bhpeft import BayesianPeft, Posterior, Prediction
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.curvature.sides import OVERSAMPLING
from posthoc_bhpeft.data import load_rows, make_loader
from posthoc_bhpeft.linalg import KroneckerOperator, LowRankFactor, from_sketch
from posthoc_bhpeft.posterior import decompose


@dataclass(frozen=True)
class Loss:
    """What one rank loses.

    Attributes:
        rank: Vectors kept.
        trace: Whether the trace of the rest is kept.
        factor: Median relative Frobenius error of the wide factors.
        best: The same with the exact leading eigenvectors.
        gain: Log-determinant of the posterior precision over the prior's.
        deviations: Standard deviations of the log-odds over those of whole factors.
        probability: Largest change of a probability.
    """

    rank: int
    trace: bool
    factor: float
    best: float
    gain: float
    deviations: Sequence[float]
    probability: float


def lowered(matrix: Tensor, rank: int, trace: bool) -> LowRankFactor:
    """A factor as a sketch of the data would have it."""
    test = torch.randn(len(matrix), OVERSAMPLING * rank, generator=torch.Generator().manual_seed(0))
    test = test.half().to(matrix)
    factor = from_sketch(matrix @ test, test, matrix.trace(), rank)
    return factor if trace else replace(factor, rest=torch.zeros_like(factor.rest))


def best(matrix: Tensor, rank: int, trace: bool) -> float:
    """Relative error of the leading eigenvectors themselves, from the eigenvalues alone."""
    values = torch.linalg.eigvalsh(matrix.double()).clamp_min(0)
    rest = values[:-rank]
    return float((rest - trace * rest.mean()).norm() / values.norm())


def error(factor: LowRankFactor, matrix: Tensor) -> float:
    """Relative Frobenius error."""
    return float((factor.full() - matrix).norm() / matrix.norm())


def measure(
    bayes: BayesianPeft, whole: Prediction, loader: Any, rank: int, trace: bool, wide: int
) -> Loss:
    """One rank against whole factors and their predictions."""
    errors, bests, curvature = [], [], {}
    for name, operator in bayes.posterior.curvature.items():
        sides = []
        for side in (operator.left, operator.right):
            if len(side) >= wide:
                narrow = lowered(side, rank, trace)
                errors.append(error(narrow, side))
                bests.append(best(side, rank, trace))
                side = narrow
            sides.append(side)
        curvature[name] = KroneckerOperator(*sides)
    prior = bayes.posterior.prior
    bases = {name: decompose(prior, name, curvature[name]) for name in bayes.posterior.bases}
    posterior = replace(bayes.posterior, curvature=curvature, bases=bases)
    ours = replace(bayes, posterior=posterior).predict_loader(loader, progress=False)
    ratio = (spread(ours.covariance) / spread(whole.covariance)).tolist()
    moved = float((ours.probabilities - whole.probabilities).abs().max())
    middle = statistics.median(errors), statistics.median(bests)
    return Loss(rank, trace, *middle, gain(posterior), ratio, moved)


def spread(covariance: Tensor | None) -> Tensor:
    """Root of the summed variances of a row's outputs."""
    assert covariance is not None, "more classes than Linearized takes a whole covariance of"
    return covariance.diagonal(dim1=1, dim2=2).sum(1).sqrt()


def gain(posterior: Posterior) -> float:
    """`log det(Lambda0 + H) - log det Lambda0`."""
    prior = sum(b.size * math.log(posterior.prior.precision[b.name]) for b in posterior.blocks)
    return posterior.precision_log_determinant() - prior


def page(command: str, losses: Sequence[Loss], whole: float, n_rows: int) -> str:
    """The table as Markdown."""
    lines = [
        "# What factors in low rank lose",
        "",
        f"Command: `{command}`  ",
        f"{n_rows} rows; log-determinant of the posterior over the prior with whole factors: "
        f"{whole:.0f}.",
        "",
        "| rank | trace | factor error (median) | best possible | log-determinant | "
        "deviation over that of whole factors: median (least, most) | largest change of a "
        "probability |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in losses:
        middle = statistics.median(one.deviations)
        lines.append(
            f"| {one.rank} | {'kept' if one.trace else 'dropped'} | {one.factor:.3f} | "
            f"{one.best:.3f} | {one.gain:.0f} | {middle:.3f} ({min(one.deviations):.3f}, "
            f"{max(one.deviations):.3f}) | {one.probability:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every rank, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--wide", type=int, default=384)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    bayes = BayesianPeft.from_pretrained(asked.checkpoint)
    rows = load_rows(asked.data, "test").draw(asked.rows, 0)
    tokenizer = load_tokenizer(asked.checkpoint)
    loader = make_loader(rows, tokenizer, batch_size=16, max_length=64)
    whole = bayes.predict_loader(loader, progress=False)
    losses = []
    for rank in asked.ranks:
        for trace in (True, False):
            losses.append(measure(bayes, whole, loader, rank, trace, asked.wide))
            command = "python benchmarks/low_rank.py CHECKPOINT --data airline_tweets"
            text = page(command, losses, gain(bayes.posterior), len(rows))
            asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
