"""`RealPredictions`: a Gaussian for each row, beside what came true."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, Floats, as_floats
from posthoc_bhpeft.audit.metrics.gaussian import Gaussians
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError, NonFiniteError
from posthoc_bhpeft.predictive import Prediction

# Where the deviation differs by less than this, in parts, it is rounding and ranks nothing.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class RealPredictions:
    """What a model said about a number, for `N` rows: `N(mean, noise + epistemic)`; float64.

    Attributes:
        mean: `(N,)`, in the unit of the targets.
        noise: Variance that would remain if the weights were known (aleatoric), `(N,)`.
        epistemic: Variance of the mean under the posterior, `(N,)`; zero for a model without one.
        targets: What came true, `(N,)`, or `None` where it is not known.
        texts: `(N,)` texts, for the examples.
        columns: Further columns by name, `N` values each, for groups.
        about: How the predictions were made, for the report: headings and sentences.
        indices: `(N,)` row numbers in the source, from 0, where they are known.

    Raises:
        DataError: If there is no row, lengths differ, or a variance is out of range.
        NonFiniteError: If a number is NaN or infinite.
    """

    mean: Floats
    noise: Floats
    epistemic: Floats
    targets: Floats | None = None
    texts: tuple[str, ...] | None = None
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if np.ndim(self.mean) != 1 or len(self.mean) == 0:
            raise DataError(
                f"mean has shape {np.shape(self.mean)}; it must be (N,) with at least one row. "
                "Audit several outputs one at a time."
            )
        for name, size in self.sizes():
            if size != len(self.mean):
                raise DataError(f"{name} has {size} entries for {len(self.mean)} rows.")
        for name in ("mean", "noise", "epistemic", "targets"):
            check_finite(name, getattr(self, name))
        check_variances(self.noise, self.epistemic)

    def __len__(self) -> int:
        return len(self.mean)

    def sizes(self) -> list[tuple[str, int]]:
        """The length of everything that must have `N` entries, by what it is."""
        named: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("noise", "epistemic", "targets", "texts", "indices")
        }
        named |= {f"column {name!r}": values for name, values in self.columns.items()}
        return [(name, len(values)) for name, values in named.items() if values is not None]

    @property
    def variance(self) -> Floats:
        """Of the target: `noise + epistemic`, `(N,)`."""
        found: Floats = self.noise + self.epistemic
        return found

    @property
    def deviation(self) -> Floats:
        """Predicted standard deviation of the target, `(N,)`: the doubt that rows are ranked by."""
        found: Floats = np.sqrt(self.variance)
        return found

    @property
    def ranks(self) -> bool:
        """Whether the deviation tells rows apart; of a point prediction it is the same for all."""
        return bool(np.ptp(self.deviation) > _SAME * self.deviation.max())

    @property
    def error(self) -> Floats:
        """`mean - target`, `(N,)`: above zero where the prediction is too high.

        Raises:
            DataError: If there are no targets.
        """
        found: Floats = self.mean - self.known_targets
        return found

    @property
    def known_targets(self) -> Floats:
        """The targets, `(N,)`.

        Raises:
            DataError: If there are none.
        """
        if self.targets is None:
            raise DataError(
                "These predictions have no targets, so nothing says how far off they are. Name "
                "the column of the targets."
            )
        return self.targets

    @property
    def gaussians(self) -> Gaussians:
        """As the metrics want them.

        Raises:
            DataError: If there are no targets.
        """
        return Gaussians(self.mean, self.deviation, self.known_targets)

    def take(self, positions: Iterable[int] | NDArray[Any]) -> RealPredictions:
        """Only the rows at these positions, in this order."""
        rows = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            mean=self.mean[rows],
            noise=self.noise[rows],
            epistemic=self.epistemic[rows],
            targets=None if self.targets is None else self.targets[rows],
            texts=None if self.texts is None else tuple(self.texts[i] for i in rows),
            columns={name: tuple(v[i] for i in rows) for name, v in self.columns.items()},
            indices=None if self.indices is None else tuple(self.indices[i] for i in rows),
        )

    @classmethod
    def checked(
        cls, mean: Array, noise: Array, epistemic: Array | None = None,
        targets: Array | None = None, **further: Any,
    ) -> RealPredictions:  # fmt: skip
        """From tensors or arrays on any device, in any precision.

        Args:
            mean: `(N,)`.
            noise: Variance, `(N,)`; all of it where the two parts are not known apart.
            epistemic: Variance, `(N,)`; zero where not given.
            targets: `(N,)`.
            further: Texts, columns and what to say about them.

        Raises:
            DataError: See the class.
            NonFiniteError: See the class.
        """
        means, noises = as_floats(mean), as_floats(noise)
        weights = np.zeros_like(means) if epistemic is None else as_floats(epistemic)
        known = None if targets is None else as_floats(targets)
        return cls(means, noises, weights, known, **further)

    @classmethod
    def of(
        cls, prediction: Prediction, rows: TextData | None = None, **about: str
    ) -> RealPredictions:
        """From what a model predicted, and the rows it predicted for, in the same order.

        The two variances are read from the entropies of the prediction, which has no other place
        for the noise: `exp(2 h) / (2 pi e)` of the aleatoric one and of the total.

        Raises:
            DataError: If these are class probabilities, or there are several outputs.
        """
        if prediction.probabilities is not None:
            raise DataError(
                "These are class probabilities, and an audit of a regression needs a mean and a "
                "variance. Call audit(...) for classes."
            )
        if prediction.logits.shape[-1] != 1:
            raise DataError(
                f"The model has {prediction.logits.shape[-1]} outputs a row. Audit them one at a "
                "time, as RealPredictions.checked(mean, noise, epistemic, targets)."
            )
        noise = variance_of(prediction.aleatoric)
        targets = None if prediction.labels is None else as_floats(prediction.labels).reshape(-1)
        return cls(
            mean=as_floats(prediction.logits)[:, 0],
            noise=noise,
            epistemic=np.maximum(variance_of(prediction.total) - noise, 0.0),
            targets=targets,
            texts=None if rows is None else rows.texts,
            columns={} if rows is None else dict(rows.columns),
            about=about,
            indices=None if rows is None else rows.indices,
        )


def variance_of(entropy: Array) -> Floats:
    """Variance of a Gaussian with this differential entropy in nats, `(N,)`."""
    found: Floats = np.exp(2.0 * as_floats(entropy)) / (2.0 * math.pi * math.e)
    return found


def check_finite(name: str, values: Floats | None) -> None:
    """Raise where a value is no number.

    Raises:
        NonFiniteError: With how many and the first of them.
    """
    if values is None:
        return
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise NonFiniteError(
            f"{len(wrong)} of {len(values)} entries of {name} are NaN or infinite, first row "
            f"{wrong[0]}. Leave those rows out."
        )


def check_variances(noise: Floats, epistemic: Floats) -> None:
    """Raise where a part of the variance is below zero, or there is none at all.

    Raises:
        DataError: With how many.
    """
    negative = int(((noise < 0) | (epistemic < 0)).sum())
    if negative:
        raise DataError(
            f"{negative} of {len(noise)} variances are below 0. Pass the variance, not its "
            "logarithm."
        )
    none = int((noise + epistemic <= 0).sum())
    if none:
        raise DataError(
            f"{none} of {len(noise)} variances are 0, which no target could be honest about. Add "
            "the variance of the noise: fit_noise(model, loader) finds it on held-out rows."
        )
