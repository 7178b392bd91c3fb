r"""`LaplaceTorch`: a posterior that laplace-torch fitted, and the diagonal one over all weights.

    theta ~ N(theta_hat, (H + delta I)^-1),   f(x) ~ N(f, J Sigma J^T)

with laplace-torch's own evidence, prior and covariance (Daxberger et al. 2021,
https://arxiv.org/abs/2106.14806); probabilities and uncertainty come from the Gaussian over logits
by the same functions as ours. Rows go through it in pieces, for it holds Jacobians `(N, C, P)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, Loader, device_of, move, split_batch
from posthoc_bhpeft.blocks import Block, discover
from posthoc_bhpeft.checks import check_arguments, check_data
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.predictive import Link, Prediction, Probit
from posthoc_bhpeft.predictive.uncertainty import predict_gaussian_outputs
from posthoc_bhpeft.rivals.point import Point
from posthoc_bhpeft.rivals.rival import predict_batches

JACOBIAN_BYTES = 2**28
"""The largest Jacobian that is held at a time; einsum makes a copy or two of it."""

THEIR_LINK = Probit()
"""How laplace-torch turns Gaussian logits into probabilities, unless asked otherwise."""

LOG_PRECISIONS = (-10.0, 15.0)
"""Natural logarithms of the prior precisions between which the evidence is searched."""


@dataclass(frozen=True)
class LaplaceTorch:
    """A fitted posterior of laplace-torch, ready to predict. Made by `fit_...`.

    Cost of a prediction: one forward pass, and `C` backward passes through the layers that the
    posterior is over.

    Attributes:
        name: For tables.
        posterior: laplace-torch's object, on a `LaplaceModel`.
        likelihood: Of the labels given outputs.
        link: From Gaussian logits to probabilities.
        rows_at_once: Rows whose Jacobian is held together.
    """

    name: str
    posterior: Any
    likelihood: Likelihood
    link: Link
    rows_at_once: int

    @property
    def precision(self) -> float:
        """Precision of the prior, chosen by the evidence."""
        return float(self.posterior.prior_precision)

    @property
    def n_weights(self) -> int:
        """`P`, the number of weights that the posterior is over."""
        return int(self.posterior.n_params)

    def predict(self, inputs: Inputs) -> Prediction:
        """Predict the inputs of one batch."""
        view = self.posterior.model
        device = device_of(view)
        parts = []
        for piece, _ in pieces(inputs, None, self.rows_at_once):
            with frozen(view.__dict__["model"]):
                jacobian, outputs = self.posterior.backend.jacobians(move(piece, device))
            covariance = self.posterior.functional_variance(jacobian).detach()
            parts.append(predict_gaussian_outputs(self.likelihood, outputs, covariance, self.link))
        return Prediction.concatenate(parts)

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`."""
        return predict_batches(loader, self.predict, self.name, progress)

    def with_link(self, link: Link) -> LaplaceTorch:
        """The same posterior with another link."""
        return replace(self, link=link)

    def describe(self) -> str:
        """One sentence for people."""
        kind = type(self.posterior).__name__
        return (
            f"{kind} of laplace-torch over {self.n_weights} weights, prior precision "
            f"{self.precision:.3g} by evidence, on {self.posterior.n_data} training rows."
        )


def fit_diagonal(
    model: nn.Module,
    loader: Loader,
    *,
    likelihood: Likelihood = Categorical(),
    link: Link = THEIR_LINK,
    progress: bool = True,
) -> LaplaceTorch:
    """Diagonal Laplace over everything trainable; it needs the training rows and no others.

    Cost: one forward and `C` backward passes over the training rows.

    Args:
        model: A trained model; unchanged.
        loader: Its training data, with labels.
        likelihood: `Categorical()`, or `Gaussian()` for regression.
        link: From Gaussian logits to probabilities; laplace-torch's own by default.
        progress: Show a progress bar.

    Returns:
        The fitted posterior, with the prior precision of the highest evidence.

    Raises:
        ConfigError: If laplace-torch has no counterpart of the likelihood.
        ModelError: If nothing is trainable, or a trainable tensor is in no block.
        DataError: If the loader is empty or read-once, or labels are missing or do not fit.
    """
    check_arguments(model, likelihood=likelihood)
    return fit_posterior(
        "diagonal Laplace", model, discover(model), loader, "diag", likelihood, link, progress
    )


def fit_posterior(
    name: str,
    model: nn.Module,
    blocks: Sequence[Block],
    loader: Loader,
    structure: str,
    likelihood: Likelihood,
    link: Link,
    progress: bool,
) -> LaplaceTorch:
    """Fit a posterior of laplace-torch over some blocks, and its one prior precision."""
    from laplace import Laplace

    from posthoc_bhpeft.interop.laplace import LaplaceLoader, LaplaceModel, PerSampleGGN

    if not isinstance(likelihood, Categorical | Gaussian):
        raise ConfigError(
            f"laplace-torch has no counterpart of {likelihood}, so there is no {name} to compare "
            "with. Categorical() and Gaussian() are supported; our own posterior takes it."
        )
    check_data(model, loader, likelihood)
    rows = rows_at_once(model, blocks, loader)
    posterior: Any = Laplace(
        LaplaceModel(model, blocks),
        "classification" if isinstance(likelihood, Categorical) else "regression",
        subset_of_weights="all",
        hessian_structure=structure,
        sigma_noise=likelihood.dispersion**0.5,
        backend=PerSampleGGN,
    )
    with explaining_memory(), frozen(model):
        posterior.fit(
            LaplaceLoader(Pieces(loader, rows, isinstance(likelihood, Gaussian))),
            progress_bar=progress,
        )
    maximise_evidence(posterior)
    return LaplaceTorch(name, posterior, likelihood, link, rows)


def maximise_evidence(posterior: Any) -> None:
    """Give a posterior of laplace-torch the one prior precision with the highest evidence.

    The evidence is laplace-torch's; its own search takes hundreds of steps of Adam to get there.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_precision: float) -> float:
        tried = torch.tensor([float(log_precision)]).exp().to(posterior.mean)
        with torch.no_grad():
            return -float(posterior.log_marginal_likelihood(tried))

    grid = torch.linspace(*LOG_PRECISIONS, 26).tolist()
    best = min(grid, key=loss)
    step = grid[1] - grid[0]
    found = minimize_scalar(loss, bounds=(best - step, best + step), method="bounded")
    posterior.prior_precision = torch.tensor([float(found.x)]).exp().to(posterior.mean)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No tensor of the model requires a gradient: the view's do, and only they are needed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def rows_at_once(model: nn.Module, blocks: Sequence[Block], loader: Loader) -> int:
    """Rows whose Jacobian `(N, C, P)` fits into `JACOBIAN_BYTES`; at least one."""
    inputs, _ = split_batch(next(iter(loader)))
    one, _ = next(pieces(inputs, None, 1))
    outputs = Point(model, Gaussian()).predict(one).logits
    size = sum(block.size for block in blocks)
    return max(1, JACOBIAN_BYTES // (outputs.shape[1] * size * outputs.element_size()))


@dataclass(frozen=True)
class Pieces:
    """A loader whose batches are cut into pieces of at most `rows` rows.

    Args:
        loader: Batches with labels.
        rows: The most rows of a piece.
        regression: Give labels as `(N, C)`, one number `(N,)` too, as laplace-torch wants them.
    """

    loader: Loader
    rows: int
    regression: bool = False

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor | None]]:
        for batch in self.loader:
            inputs, labels = split_batch(batch)
            if self.regression and labels is not None:
                labels = labels.reshape(len(labels), -1) * 1.0
            yield from pieces(inputs, labels, self.rows)


def pieces(
    inputs: Inputs, labels: Tensor | None, rows: int
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """A batch in pieces of at most `rows` rows, in their order."""
    from posthoc_bhpeft.interop.laplace import row_subset

    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs.values()
    n_rows = next(len(t) for t in tensors if isinstance(t, Tensor) and t.dim() > 0)
    for part in torch.arange(n_rows).split(rows):
        keep = torch.zeros(n_rows, dtype=torch.bool).scatter(0, part, True)
        mine = None if labels is None else labels[keep.to(labels.device)]
        if isinstance(inputs, Tensor):
            yield inputs[keep.to(inputs.device)], mine
        else:
            yield {k: row_subset(v, on_its_device(keep, v)) for k, v in inputs.items()}, mine


def on_its_device(keep: Tensor, value: Any) -> Tensor:
    """The mask where a value is."""
    return keep.to(value.device) if isinstance(value, Tensor) else keep
