"""From a posterior over weights to predictions with uncertainty."""

from posthoc_bhpeft.predictive.linearized import Linearized, projected_jacobian
from posthoc_bhpeft.predictive.links import (
    ClassPreserving,
    LaplaceBridge,
    Link,
    MonteCarlo,
    Probit,
)
from posthoc_bhpeft.predictive.prediction import Prediction
from posthoc_bhpeft.predictive.sampled import MAP, Sampled

__all__ = [
    "MAP",
    "ClassPreserving",
    "LaplaceBridge",
    "Linearized",
    "Link",
    "MonteCarlo",
    "Prediction",
    "Probit",
    "Sampled",
    "projected_jacobian",
]
