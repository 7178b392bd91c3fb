r"""Novelty: how far a row is from all that the last layer has seen, in the outputs' own units.

A prior that is strong enough for good probabilities hides what is new: along most directions the
variance is the prior's, for known rows and for strange ones alike. So novelty is taken under the
*unit information prior*, worth one average row of the data (Kass and Wasserman 1995,
https://doi.org/10.1080/01621459.1995.10476592):

    d_u = tr(K + H) / (N P),    novelty(x) = sqrt(tr(A^T J (K + H + d_u I)^-1 J^T A))

with `J (C, P)` the Jacobian in the last layer's `P` weights and `A (C, M)` the output directions
that the link's probabilities depend on. For a linear head this is the leverage of its input, the
Mahalanobis distance that tells strange rows from known ones (Lee et al. 2018,
https://arxiv.org/abs/1807.03888). Earlier layers see what words a text has rather than what it is
about; with them the score ranks worse. Measured in `benchmarks/calibration.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from posthoc_bhpeft.blocks import Block, Kind
from posthoc_bhpeft.linalg import Metric, WholeMetric
from posthoc_bhpeft.posterior import Posterior


def last_layer(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The head; where none is trained, the layer of the highest number, by the modules' names."""
    heads = tuple(block for block in blocks if block.kind is Kind.HEAD)
    if heads:
        return heads
    last = max(layer_number(block) for block in blocks)
    return tuple(block for block in blocks if layer_number(block) == last)


def layer_number(block: Block) -> int:
    """The first number among the parts of a name: `bert.encoder.layer.5.output` is in 5."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", block.name)
    return int(found[1]) if found else -1


def unit_information(posterior: Posterior, blocks: Sequence[Block]) -> float:
    """`d_u = tr(K + H) / (N P)` over some blocks; never below the rounding of their eigenvalues."""
    values = [posterior.bases[block.name].eigenvalues for block in blocks]
    trace, largest = sum(float(v.sum()) for v in values), max(float(v.max()) for v in values)
    unit = trace / (posterior.n_rows * sum(block.size for block in blocks))
    single = torch.finfo(torch.float32)
    return max(unit, single.eps * largest, single.tiny)


def unit_metrics(posterior: Posterior) -> Mapping[str, Metric]:
    """The metric of each block of the last layer under the unit information prior; made once."""
    return posterior.made_once("at unit information", lambda: metrics_at_unit(posterior))


def metrics_at_unit(posterior: Posterior) -> dict[str, Metric]:
    """See `unit_metrics`."""
    blocks = last_layer(posterior.blocks)
    unit = unit_information(posterior, blocks)
    bases = {block.name: posterior.bases[block.name] for block in blocks}
    return {name: WholeMetric(b, (b.eigenvalues + unit).rsqrt()) for name, b in bases.items()}


def novelty_of(covariance: Tensor, directions: Tensor, needed: Tensor) -> Tensor:
    """`sqrt(tr(A^T D V D^T A))`, `(N,)`.

    Args:
        covariance: `V` `(N, K, K)` along `directions`, under the unit information prior.
        directions: `D` `(N, C, K)`, orthonormal.
        needed: `A` `(N, C, M)`, orthonormal.
    """
    turned = directions.mT @ needed
    return torch.einsum("nkm,nkl,nlm->n", turned, covariance, turned).clamp_min(0).sqrt()
