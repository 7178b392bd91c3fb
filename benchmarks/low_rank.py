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
from pages import markdown, origin, publish
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


def table(losses: Sequence[Loss]) -> str:
    """A row a rank, with and without the trace."""
    rows = []
    for one in losses:
        middle, ends = statistics.median(one.deviations), (min(one.deviations), max(one.deviations))
        rows.append(
            [
                str(one.rank),
                "kept" if one.trace else "dropped",
                f"{one.factor:.3f}",
                f"{one.best:.3f}",
                f"{one.gain:.0f}",
                f"{middle:.3f} ({ends[0]:.3f}, {ends[1]:.3f})",
                f"{one.probability:.4f}",
            ]
        )
    header = ["rank", "trace", "factor error (median)", "best possible", "log-determinant"]
    header += ["deviation over that of whole factors: median (least, most)"]
    return markdown([*header, "largest change of a probability"], rows)


def page(losses: Sequence[Loss], whole: Posterior, n_rows: int, options: argparse.Namespace) -> str:
    """The page that is committed."""
    sides = [len(side) for one in whole.curvature.values() for side in (one.left, one.right)]
    n_wide = sum(side >= options.wide for side in sides)
    return f"""# What factors in low rank lose

{origin("torch", CHECKPOINT=options.checkpoint, FOLDER=options.data)}; {n_wide} factors at least \
{options.wide} wide; {n_rows} test rows of {options.data.name}; log-determinant of the posterior \
over the prior with whole factors: {gain(whole):.0f}.

{table(losses)}
"""


def main() -> None:
    """Measure every rank, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--wide", type=int, default=384)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--output", type=Path)
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
    publish(page(losses, bayes.posterior, len(rows), asked), asked.output)


if __name__ == "__main__":
    main()
