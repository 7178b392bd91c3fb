"""Post-hoc Laplace posteriors over adapters, LoRA, prefix and head of a fine-tuned Transformer."""

from posthoc_bhpeft.api import BayesianPeft, Predictive, bayesianize
from posthoc_bhpeft.blocks import Block, Kind, discover, observing
from posthoc_bhpeft.curvature import (
    KFAC,
    Auto,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    EmpiricalFisher,
    Exact,
    KroneckerGGN,
    Placed,
    RandomSigns,
    Resume,
    Softened,
    Subsample,
)
from posthoc_bhpeft.errors import BhpeftError
from posthoc_bhpeft.generation import Generation, generate_with_uncertainty
from posthoc_bhpeft.hybrid import AdapterPlacement, HybridConfig, HybridModel
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Tokens
from posthoc_bhpeft.merging import common_prior, merge
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive import (
    MAP,
    LaplaceBridge,
    Linearized,
    LogOdds,
    MonteCarlo,
    Prediction,
    Probit,
    Sampled,
    Tangent,
    Tempered,
)
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import (
    Chained,
    FixedPrecision,
    Grouping,
    HeldOut,
    LeaveOneOut,
    MarginalLikelihood,
    MatchedPrecision,
    PriorRule,
    VisiblePrecision,
)
from posthoc_bhpeft.shards import Shard
from posthoc_bhpeft.size import Estimate, estimate

__all__ = [
    "KFAC",
    "MAP",
    "AdapterPlacement",
    "Auto",
    "BayesianPeft",
    "Bernoulli",
    "BhpeftError",
    "Block",
    "Categorical",
    "Chained",
    "Contrasts",
    "DenseGGN",
    "DiagonalGGN",
    "EmpiricalFisher",
    "Estimate",
    "Exact",
    "FixedPrecision",
    "Gaussian",
    "GaussianPrior",
    "Generation",
    "Grouping",
    "HeldOut",
    "HybridConfig",
    "HybridModel",
    "Kind",
    "KroneckerGGN",
    "LaplaceBridge",
    "LeaveOneOut",
    "Linearized",
    "LogOdds",
    "MarginalLikelihood",
    "MatchedPrecision",
    "MonteCarlo",
    "Placed",
    "Posterior",
    "Prediction",
    "Predictive",
    "PriorRule",
    "Probit",
    "RandomSigns",
    "Resume",
    "Sampled",
    "Shard",
    "Softened",
    "Subsample",
    "Tangent",
    "Tempered",
    "Tokens",
    "VisiblePrecision",
    "bayesianize",
    "common_prior",
    "discover",
    "estimate",
    "generate_with_uncertainty",
    "merge",
    "observing",
]
