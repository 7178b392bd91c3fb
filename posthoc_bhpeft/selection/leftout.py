r"""Training rows as the model without each of them would see them, in the dual of the GGN.

With `g_n` the gradient of row `n`'s label log-odds `L_n` in the weights and `p_n = sigmoid(L_n)`,

    H(d) = d I + sum_n w_n g_n g_n^T,   w_n = p_n (1 - p_n),
    v_n = g_n^T H^-1 g_n,   v_-n = v_n / (1 - w_n v_n),   L_-n = L_n - v_-n (1 - p_n):

`v_-n` is the variance without row `n` (Sherman and Morrison), and `L_-n` one Newton step away from
its label (Opper and Winther 2000, https://doi.org/10.1162/089976600300014881; the infinitesimal
jackknife, Giordano et al. 2019, https://arxiv.org/abs/1806.00550). For a quadratic loss both are
exact. All weights are taken together, as no block-diagonal curvature would: measured on nine data
sets, the block-diagonal step is off by a factor that depends on the set.

`H` is never formed: with `K = G G^T` and its eigenvalues under the weights `w`, `v_n` costs nothing
more at any `d`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.evidence import HIGHEST, LOWEST
from posthoc_bhpeft.likelihood import Bernoulli, Likelihood
from posthoc_bhpeft.linalg import eigh
from posthoc_bhpeft.predictive.gradients import LabelGradients, label_log_odds
from posthoc_bhpeft.predictive.links import PROBIT, binary_entropy

WIDENED = 1024
"""Columns at a time."""

HARDLY_BETTER = 0.9
"""A network with more of the NLL of guessing by frequency knows little else of its labels."""


@dataclass(frozen=True)
class DualVariances:
    """`v_n` and `v_-n` at every precision, from one eigendecomposition.

    Attributes:
        lengths: `|g_n|^2`, `(R,)`.
        weights: `w_n` times the number of rows that each row stands for, `(R,)`.
        eigenvalues: Of `W^1/2 K W^1/2`, `(R,)`.
        loads: `K W^1/2 U`, `(R, R)`, `U` its eigenvectors.
    """

    lengths: Tensor
    weights: Tensor
    eigenvalues: Tensor
    loads: Tensor

    @classmethod
    def of(cls, gradients: Tensor, weights: Tensor) -> DualVariances:
        """From gradients or sketches of them `(R, k)` and weights `(R,)`, in float64."""
        kernel, roots = products(gradients), weights.double().sqrt()
        values, vectors = eigh(roots[:, None] * kernel * roots)
        loads = (kernel * roots) @ vectors
        return cls(kernel.diagonal().clone(), weights.double(), values.clamp_min(0), loads)

    def inside(self, precision: float) -> Tensor:
        """`v_n`, with every row: `(|g|^2 - sum_i loads_i^2 / (d + l_i)) / d`."""
        explained = self.loads.square() @ (1 / (precision + self.eigenvalues))
        return ((self.lengths - explained) / precision).clamp_min(0)

    def outside(self, precision: float) -> Tensor:
        """`v_-n`, without the row itself."""
        inside = self.inside(precision)
        # With `w` exact, `w v < 1`; rounding may say otherwise where a row is all there is.
        return inside / (1 - self.weights * inside).clamp_min(1e-6)


@dataclass(frozen=True)
class LeftOutRows:
    """Training rows, ready to be judged without themselves.

    Attributes:
        likelihood: Of the labels.
        gradients: Of the label log-odds.
        dual: Their variances.
    """

    likelihood: Likelihood
    gradients: LabelGradients
    dual: DualVariances

    @classmethod
    def of(cls, likelihood: Likelihood, gradients: LabelGradients, n_rows: int) -> LeftOutRows:
        """From some training rows, evenly drawn from `n_rows`."""
        p = gradients.log_odds(likelihood).sigmoid()
        # Each stands for as many as there are in all, those of its own row among them.
        every = n_rows * answers_of(likelihood, gradients.outputs.shape[-1])
        copies = max(every / len(p), 1.0)
        dual = DualVariances.of(gradients.sketches, copies * p * (1 - p))
        return cls(likelihood, gradients, dual)

    def log_odds(self, temperature: float = 1.0) -> Tensor:
        """`L` of the labels at a temperature, `(R,)`."""
        return self.gradients.log_odds(self.likelihood, temperature)

    def softens_to_guessing(self) -> bool:
        """Whether less sure predictions could be worse than the labels' frequencies.

        They go towards one half, which a label that seldom applies is far from. So of several
        labels a row: whether `NLL > 0.9 NLL_0`, `NLL_0` that of guessing by frequency.
        """
        if not isinstance(self.likelihood, Bernoulli):
            return False
        outputs, labels = self.gradients.outputs, self.gradients.labels.double()
        guessed = binary_entropy(labels.mean(0)).sum()
        every = label_log_odds(self.likelihood, outputs, labels)
        known = F.softplus(-every).sum() / len(labels)
        return bool(known > HARDLY_BETTER * guessed)

    def matched_precision(self) -> float:
        """The precision at which the prior predicts label log-odds as large as the network's.

        `d = sum_n |g_n|^2 / sum_n (L_n - L_0)^2`, with `L_0 = -log(C - 1)` what a network without
        any preference says.
        """
        classes = self.gradients.outputs.shape[-1]
        nothing = 0.0 if isinstance(self.likelihood, Bernoulli) else -math.log(classes - 1)
        moved = float((self.log_odds() - nothing).square().sum())
        if moved == 0:
            return HIGHEST
        return min(max(float(self.dual.lengths.sum()) / moved, LOWEST), HIGHEST)

    def steps(self, precision: float) -> Tensor:
        """`v_-n (1 - p_n)`, how far a label's log-odds fall without its row, `(R,)`."""
        return self.dual.outside(precision) * (-self.log_odds()).sigmoid()

    def predictive_variance(self, precision: float) -> Tensor:
        """The posterior's own variance of the log-odds, as if without the row, `(R,)`."""
        inside = self.dual.inside(precision)
        grown = self.dual.outside(precision) / inside.clamp_min(1e-30)
        return self.gradients.variance(precision) * torch.where(inside > 0, grown, 1.0)

    def losses(self, temperature: float, steps: Tensor, variance: Tensor) -> Tensor:
        """NLL of each left-out label at a temperature, `(R,)`, in nats.

        `-log sigmoid(m / sqrt(1 + pi/8 v / T^2))`, `m = L(f / T) - step / T`.
        """
        moved = self.log_odds(temperature) - steps / temperature
        return F.softplus(-moved / torch.sqrt(1 + PROBIT * variance / temperature**2))


def products(rows: Tensor) -> Tensor:
    """Inner products of rows `(R, k)`, `(R, R)` in float64; the rows are widened part by part."""
    found = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(WIDENED, 1):
        wide = part.double()
        found.addmm_(wide, wide.T)
    return found


def answers_of(likelihood: Likelihood, n_outputs: int) -> int:
    """Of a row: a yes or no for each output, or one label."""
    return n_outputs if isinstance(likelihood, Bernoulli) else 1


def most_modest(losses: Tensor, errors: float = 2.0) -> int:
    """The first candidate that is no worse than the best by more than some standard errors.

    Args:
        losses: `(K, R)`, of `K` candidates on the same rows; the most modest candidate first.
        errors: How many.

    Returns:
        Its index: the smallest `k` with `mean(e) <= errors sd(e) / sqrt(R)`, `e = losses_k -
        losses_best` (the standard-error rule of Breiman et al. 1984, with paired differences).
    """
    excess = losses - losses[int(losses.mean(1).argmin())]
    error = excess.std(1) / math.sqrt(losses.shape[1]) if losses.shape[1] > 1 else 0.0
    within = excess.mean(1) <= errors * error + 1e-12
    return int(within.int().argmax())
