"""Curvature estimators: one a file, all sums of outer products of per-sample gradients."""

from posthoc_bhpeft.curvature.dense import DenseGGN
from posthoc_bhpeft.curvature.diagonal import DiagonalGGN
from posthoc_bhpeft.curvature.directions import (
    Auto,
    Contrasts,
    Directions,
    EmpiricalFisher,
    Exact,
    RandomSigns,
    Softened,
)
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, FittedCurvature, Summed
from posthoc_bhpeft.curvature.fit import fit_curvature
from posthoc_bhpeft.curvature.kfac import KFAC
from posthoc_bhpeft.curvature.kronecker import KroneckerGGN
from posthoc_bhpeft.curvature.placed import Placed
from posthoc_bhpeft.curvature.resuming import Keeper, Resume, check_repeatable
from posthoc_bhpeft.curvature.subsample import Subsample, sampled

__all__ = [
    "KFAC",
    "Accumulator",
    "Auto",
    "Contrasts",
    "Curvature",
    "DenseGGN",
    "DiagonalGGN",
    "Directions",
    "EmpiricalFisher",
    "Exact",
    "FittedCurvature",
    "Keeper",
    "KroneckerGGN",
    "Placed",
    "RandomSigns",
    "Resume",
    "Softened",
    "Subsample",
    "Summed",
    "check_repeatable",
    "fit_curvature",
    "sampled",
]
