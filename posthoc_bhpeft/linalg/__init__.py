"""Linear algebra on `(p, q)` matrices: operators, their sums, eigenbases, merging and solving.

Every operator acts on `vec(X)` with **row-major** `vec` (torch's `flatten`), so that
`(L (x) R) vec(X) = vec(L X R^T)`. Much of the K-FAC literature stacks columns; there the same
operator is written `R (x) L`.

Nothing here knows of modules, data or probability.
"""

from posthoc_bhpeft.linalg.completed import CompletedBasis
from posthoc_bhpeft.linalg.eigen import (
    DenseEigenbasis,
    Eigenbasis,
    IdentityEigenbasis,
    KroneckerEigenbasis,
    symmetric_eigh,
)
from posthoc_bhpeft.linalg.joint import (
    HIGH_FLOOR,
    dropped_energy,
    joint_eigenbasis,
    pair_eigenbasis,
    shared_eigenbasis,
)
from posthoc_bhpeft.linalg.lowrank import Factor, LowRankFactor, from_sketch, full
from posthoc_bhpeft.linalg.merge import MergedTerms, merge_terms
from posthoc_bhpeft.linalg.metric import Metric, WholeMetric, inner, metric_of
from posthoc_bhpeft.linalg.nearest import nearest_kronecker
from posthoc_bhpeft.linalg.operators import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
)
from posthoc_bhpeft.linalg.products import pulled_to_left, pulled_to_right, quadratic_form
from posthoc_bhpeft.linalg.sketch import CountSketch
from posthoc_bhpeft.linalg.solve import Solution, conjugate_gradients
from posthoc_bhpeft.linalg.stored import check_structure, restored, structure_of
from posthoc_bhpeft.linalg.sums import OperatorSum, grow_rows
from posthoc_bhpeft.linalg.threads import NARROW, eigh, side_by_side

__all__ = [
    "HIGH_FLOOR",
    "NARROW",
    "BlockOperator",
    "CompletedBasis",
    "CountSketch",
    "DenseEigenbasis",
    "DenseOperator",
    "DiagonalOperator",
    "Eigenbasis",
    "Factor",
    "IdentityEigenbasis",
    "KroneckerEigenbasis",
    "KroneckerOperator",
    "LowRankFactor",
    "MergedTerms",
    "Metric",
    "OperatorSum",
    "Solution",
    "WholeMetric",
    "check_structure",
    "conjugate_gradients",
    "dropped_energy",
    "eigh",
    "from_sketch",
    "full",
    "grow_rows",
    "inner",
    "joint_eigenbasis",
    "merge_terms",
    "metric_of",
    "nearest_kronecker",
    "pair_eigenbasis",
    "pulled_to_left",
    "pulled_to_right",
    "quadratic_form",
    "restored",
    "shared_eigenbasis",
    "side_by_side",
    "structure_of",
    "symmetric_eigh",
]
