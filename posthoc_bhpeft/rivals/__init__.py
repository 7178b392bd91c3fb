"""Other ways to get honest probabilities from one trained model, to compare ours with.

Each gives a `Prediction` for a loader; docs/rivals.md says what each costs and needs.
"""

from posthoc_bhpeft.rivals.dropout import Dropout
from posthoc_bhpeft.rivals.ensemble import Ensemble, load_ensemble
from posthoc_bhpeft.rivals.laplace_torch import LaplaceTorch, fit_diagonal
from posthoc_bhpeft.rivals.last_layer import fit_last_layer
from posthoc_bhpeft.rivals.point import Point
from posthoc_bhpeft.rivals.rival import Rival
from posthoc_bhpeft.rivals.temperature import Temperature, fit_temperature

__all__ = [
    "Dropout",
    "Ensemble",
    "LaplaceTorch",
    "Point",
    "Rival",
    "Temperature",
    "fit_diagonal",
    "fit_last_layer",
    "fit_temperature",
    "load_ensemble",
]
