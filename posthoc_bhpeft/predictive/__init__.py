"""From a posterior over weights to predictions with uncertainty."""

from posthoc_bhpeft.predictive.linearized import Linearized, projected_jacobian
from posthoc_bhpeft.predictive.links import (
    LaplaceBridge,
    Link,
    LogOdds,
    MonteCarlo,
    Probit,
    Tempered,
)
from posthoc_bhpeft.predictive.prediction import UNCERTAINTIES, Prediction
from posthoc_bhpeft.predictive.sampled import MAP, Sampled
from posthoc_bhpeft.predictive.tangent import Tangent

__all__ = [
    "MAP",
    "UNCERTAINTIES",
    "LaplaceBridge",
    "Linearized",
    "Link",
    "LogOdds",
    "MonteCarlo",
    "Prediction",
    "Probit",
    "Sampled",
    "Tangent",
    "Tempered",
    "projected_jacobian",
]
