"""Prior rules: how the precision of the prior is chosen, and why, in words.

A rule is one dataclass with one method; write your own and pass it as `prior=`.
"""

from posthoc_bhpeft.selection.chained import Chained
from posthoc_bhpeft.selection.evidential import MarginalLikelihood, VisiblePrecision
from posthoc_bhpeft.selection.fixed import FixedPrecision
from posthoc_bhpeft.selection.groups import Grouping
from posthoc_bhpeft.selection.heldout import HeldOut, gaussian_nll
from posthoc_bhpeft.selection.leaveout import LeaveOneOut
from posthoc_bhpeft.selection.matched import MatchedPrecision
from posthoc_bhpeft.selection.passes import Passes
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule, spread

__all__ = [
    "Chained",
    "FixedPrecision",
    "Grouping",
    "HeldOut",
    "LaplaceFit",
    "LeaveOneOut",
    "MarginalLikelihood",
    "MatchedPrecision",
    "Passes",
    "PriorChoice",
    "PriorRule",
    "VisiblePrecision",
    "gaussian_nll",
    "spread",
]
