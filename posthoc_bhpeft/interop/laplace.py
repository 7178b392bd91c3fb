r"""laplace-torch both ways: our curvature as its `backend=`, our posterior as its `KronLaplace`.

```python
view = LaplaceModel(model)
la = Laplace(view, "classification", subset_of_weights="all", hessian_structure="kron",
             backend=PerSampleGGN)
la.fit(LaplaceLoader(loader))

la = to_laplace(bayes)
```

laplace-torch keeps one Kronecker term a parameter. The two blocks of a prefix are halves of one
parameter, in another order of its elements, and a vector would get a dense `(P, P)` block. So it is
shown a thin view of the model, `LaplaceModel`, whose parameters *are* the blocks, `(p, q)` matrices
in the order of `discover`: every term fits, a precision a layer means one a block, and nothing
laplace-torch writes (weights while sampling, `.grad`, `output_size`) reaches the user's model.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch
from laplace import KronLaplace
from laplace.curvature import GGNInterface
from laplace.utils.matrix import Kron, KronDecomposed
from torch import Tensor, nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.batches import (
    Loader,
    evaluating,
    labelled_rows,
    look_through,
    move,
    split_batch,
)
from posthoc_bhpeft.blocks import Block, discover, observing
from posthoc_bhpeft.curvature import Auto, Directions, KroneckerGGN
from posthoc_bhpeft.curvature.fit import add_batch, masked_directions
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.linalg import IdentityEigenbasis, KroneckerOperator, full, symmetric_eigh
from posthoc_bhpeft.posterior import Posterior, as_parameters, read_weights
from posthoc_bhpeft.predictive.linearized import projected_jacobian
from posthoc_bhpeft.predictive.sampled import forward_with


class LaplaceModel(nn.Module):
    """A view of a model as laplace-torch wants it: one batch in, logits out, blocks as parameters.

    Args:
        model: A fine-tuned model, on its device; never changed, always run in evaluation mode.
        blocks: From `discover`, by default.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block] | None = None) -> None:
        super().__init__()
        # Kept out of the module tree: its parameters are not the view's, and it gets no parent.
        self.__dict__["model"] = model
        self.blocks = tuple(discover(model) if blocks is None else blocks)
        weights = read_weights(model, self.blocks)
        self.matrices = nn.ParameterList(weights[block.name] for block in self.blocks)

    def forward(self, batch: Any) -> Tensor:
        """Outputs `(N, C)` at the view's weights; a dict's labels are not shown to the model."""
        inputs, _ = split_batch(batch)
        model: nn.Module = self.__dict__["model"]
        weights = {block.name: m for block, m in zip(self.blocks, self.matrices, strict=True)}
        with evaluating(model):
            parameters = as_parameters(model, self.blocks, weights)
            return forward_with(model, parameters, move(inputs, self.matrices[0].device))


class LaplaceLoader:
    """A loader as laplace-torch wants it, without rows that have no label.

    A pair of tensors stays one; anything else becomes one dict with `labels`. laplace-torch takes
    the number of rows from `loader.dataset`, which is wrong under a sampler: here it is the number
    of labelled rows that the loader really gives.

    Args:
        loader: Batches in any form that `bayesianize` takes; read once for its labels.

    Raises:
        DataError: If the loader is empty or read-once, or a batch has no labels.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.dataset = range(look_through(loader, lambda *_: None).n_rows)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | dict[str, Any]]:
        for batch in self.loader:
            inputs, labels = split_batch(batch)
            assert labels is not None  # looked through when the loader was wrapped
            keep = labelled_rows(labels)
            if not bool(keep.any()):
                continue
            if isinstance(inputs, Tensor):
                yield inputs[keep], labels[keep]
            else:
                rows = {name: row_subset(value, keep) for name, value in inputs.items()}
                yield {**rows, "labels": labels[keep]}


def row_subset(value: Any, keep: Tensor) -> Any:
    """The rows of a tensor that are kept; anything that has no rows as it is."""
    has_rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(keep)
    return value[keep] if has_rows else value


class KroneckerSums(Kron):
    """`Kron` of `L (x) R / trace(L)`, which adds `L` and `R` before it divides.

    laplace-torch sums the factors of batches one by one, which for the factors of `KroneckerGGN` is
    right only before they are normalised. An instance keeps the sums; `kfacs`, all that
    laplace-torch reads, are normalised.

    Args:
        sums: `L = sum G G^T (p, p)` and `R = sum G^T G (q, q)` of each block.
    """

    def __init__(self, sums: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.sums = list(sums)

    @property
    def kfacs(self) -> list[list[Tensor]]:  # type: ignore[override]  # an attribute of Kron
        """The factors, each with half of the trace."""
        roots = [left.trace().sqrt().clamp_min(1e-30) for left, _ in self.sums]
        return [
            [left / root, right / root]
            for (left, right), root in zip(self.sums, roots, strict=True)
        ]

    def __add__(self, other: Kron) -> KroneckerSums:
        if not isinstance(other, KroneckerSums):
            return self.__radd__(other)
        return KroneckerSums(
            [(a + c, b + d) for (a, b), (c, d) in zip(self.sums, other.sums, strict=True)]
        )

    def __radd__(self, other: Kron) -> KroneckerSums:
        # Python asks a subclass first, so `zeros += sums` comes here.
        if any(bool(factor.any()) for factors in other.kfacs for factor in factors):
            raise ConfigError(
                "This KronLaplace was loaded from a state dict, which holds normalised factors "
                "only, so more data cannot be added. Fit it again, with override=True."
            )
        return self

    def decompose(self, damping: bool = False) -> KronDecomposed:
        """Eigenvectors and eigenvalues, decomposed in float64."""
        vectors: list[Any] = []
        values: list[Any] = []
        for factors in self.kfacs:
            pairs = [symmetric_eigh(factor) for factor in factors]
            vectors.append([q for _, q in pairs])
            values.append([eigenvalues.to(q) for eigenvalues, q in pairs])
        return KronDecomposed(vectors, values, damping=damping)


class PerSampleGGN(GGNInterface):
    """Backend of laplace-torch with the curvature of `KroneckerGGN`; for a `LaplaceModel`.

    `hessian_structure="kron"` gives the Kronecker factors of this package, `"diag"` and `"full"`
    the exact GGN. The GLM predictive is laplace-torch's own and holds a dense `(N, C, P)` Jacobian;
    `BayesianPeft.predict` does not.

    Args:
        model: A `LaplaceModel`.
        likelihood: `"classification"` or `"regression"`.
        last_layer: Not supported.
        subnetwork_indices: As in laplace-torch, over the view's parameters.
        dict_key_x: As in laplace-torch; not needed here.
        dict_key_y: As in laplace-torch; not needed here.
        directions: Output directions to differentiate; `Auto()` by default.
        seed: Of random directions.

    Raises:
        ConfigError: If the model is no `LaplaceModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str,
        last_layer: bool = False,
        subnetwork_indices: torch.LongTensor | None = None,
        dict_key_x: str = "input_ids",
        dict_key_y: str = "labels",
        directions: Directions | None = None,
        seed: int = 0,
    ) -> None:
        if last_layer or not isinstance(model, LaplaceModel):
            raise ConfigError(
                f"PerSampleGGN needs a LaplaceModel, got {type(model).__name__}. Write "
                "Laplace(LaplaceModel(model), ..., subset_of_weights='all'); to have the head "
                "alone, freeze the rest of the model."
            )
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y)
        self.estimator = KroneckerGGN(directions or Auto())
        self.generator = torch.Generator().manual_seed(seed)
        self.view = model

    @property
    def output_likelihood(self) -> Likelihood:
        """The likelihood in our terms; laplace-torch scales regression by the noise itself."""
        return Categorical() if self.likelihood == "classification" else Gaussian(1.0)

    def kron(
        self,
        x: Tensor | MutableMapping[str, Any],
        y: Tensor,
        N: int,
        **kwargs: Any,
    ) -> tuple[Tensor, KroneckerSums]:
        """Summed loss and Kronecker sums of one batch; `N`, the size of the data, is not needed."""
        model = self.view.__dict__["model"]
        accumulators = {b.name: self.estimator.accumulator(b) for b in self.view.blocks}
        with observing(model, self.view.blocks) as tape:
            outputs = self.view(x)
            keep = labelled_rows(y)
            self.output_likelihood.check_labels(outputs[keep], y[keep])
            directions = masked_directions(
                self.estimator, self.output_likelihood, outputs.detach(), y, keep, self.generator
            )
            add_batch(tape, outputs, directions, keep, accumulators)
        loss = self.factor * self.lossfunc(outputs.detach()[keep], y[keep])
        return loss, KroneckerSums([kronecker_sums(a.finish()) for a in accumulators.values()])

    def jacobians(
        self, x: Tensor | MutableMapping[str, Any], enable_backprop: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Jacobian `(N, C, P)` and outputs `(N, C)`, `C` backward passes.

        Raises:
            ConfigError: If `enable_backprop`; the hooks give values, not a graph of them.
        """
        if enable_backprop:
            raise ConfigError(
                "PerSampleGGN cannot differentiate through the Jacobian (enable_backprop=True). "
                "Use laplace-torch's default backend for that."
            )
        with observing(self.view.__dict__["model"], self.view.blocks) as tape:
            outputs = self.view(x)
            units = torch.eye(outputs.shape[1]).to(outputs).expand(len(outputs), -1, -1)
            bases = {b.name: IdentityEigenbasis(torch.ones(b.shape)) for b in self.view.blocks}
            jacobian = projected_jacobian(tape, self.view.blocks, bases, outputs, units)
        if self.subnetwork_indices is not None:
            jacobian = jacobian[:, :, self.subnetwork_indices]
        return jacobian, outputs.detach()


def kronecker_sums(operator: KroneckerOperator, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """`L` and `R` with `L (x) R / trace(L)` the operator times `scale`, for any split of it."""
    left, right = full(operator.left) * scale, full(operator.right)
    return left * right.trace(), right * left.trace()


def to_laplace(bayes: BayesianPeft) -> KronLaplace:
    """A fitted `KronLaplace` with the posterior of `bayes`.

    Evidence, prior and posterior are the same. Its GLM predictive with
    `link_approx="probit"` is that of `Linearized(Probit(), centred=False)`.

    Args:
        bayes: Made by `bayesianize` with `KroneckerGGN` or `KFAC` curvature.

    Returns:
        An object of laplace-torch on a `LaplaceModel`; the user's model is not changed by it.

    Raises:
        ConfigError: If laplace-torch has no counterpart of the likelihood, the curvature or what
            the prior carries from earlier data.
    """
    posterior, likelihood = bayes.posterior, bayes.likelihood
    if not isinstance(likelihood, Categorical | Gaussian):
        raise ConfigError(
            f"laplace-torch has no counterpart of {likelihood}; Categorical() and Gaussian() are "
            "supported."
        )
    laplace = KronLaplace(
        LaplaceModel(bayes.model, posterior.blocks),
        "classification" if isinstance(likelihood, Categorical) else "regression",
        sigma_noise=likelihood.dispersion**0.5,
        prior_precision=prior_precision(posterior),
        prior_mean=prior_mean(posterior),
        backend=PerSampleGGN,
        backend_kwargs={"directions": bayes.curvature.directions},
    )
    laplace.mean = torch.cat([posterior.mean[b.name].flatten() for b in posterior.blocks])
    # laplace-torch keeps curvature and loss at unit noise, and divides them by the noise later.
    laplace.H_facs = KroneckerSums(
        [kronecker_sums(factors_of(posterior, b), likelihood.dispersion) for b in posterior.blocks]
    )
    laplace.H = laplace.H_facs.decompose()
    laplace.loss = summed_loss(posterior, likelihood)
    laplace.n_data, laplace.n_outputs = posterior.n_rows, posterior.n_outputs
    return laplace


def factors_of(posterior: Posterior, block: Block) -> KroneckerOperator:
    """The Kronecker factors of one block."""
    if block.name in posterior.prior.carried:
        raise ConfigError(
            f"to_laplace: the prior of block {block.name!r} carries curvature from earlier data, "
            "and a prior of laplace-torch is isotropic. Convert the posterior of the first fit, "
            "or use predict() of this one."
        )
    operator = posterior.curvature[block.name]
    if not isinstance(operator, KroneckerOperator):
        raise ConfigError(
            f"to_laplace: block {block.name!r} has a {type(operator).__name__}, and KronLaplace "
            "holds Kronecker factors. Fit with curvature=KroneckerGGN()."
        )
    return operator


def prior_precision(posterior: Posterior) -> Tensor:
    """One precision where all blocks share it, else one a block."""
    values = [posterior.prior.precision[block.name] for block in posterior.blocks]
    return torch.tensor(values if len(set(values)) > 1 else values[:1], dtype=torch.float64)


def prior_mean(posterior: Posterior) -> float | Tensor:
    """Zero, or the mean of every weight in the order of the blocks."""
    if not posterior.prior.mean:
        return 0.0
    means = [
        torch.zeros_like(posterior.mean[block.name]) if mean is None else mean
        for block in posterior.blocks
        for mean in [posterior.prior.mean_of(block)]
    ]
    return torch.cat([mean.flatten() for mean in means])


def summed_loss(posterior: Posterior, likelihood: Categorical | Gaussian) -> float:
    """laplace-torch's loss: negative log likelihood, or half the summed squared error."""
    if isinstance(likelihood, Categorical):
        return -posterior.log_likelihood
    n = posterior.n_rows * posterior.n_outputs
    unit = torch.tensor(2 * torch.pi * likelihood.dispersion, dtype=torch.float64)
    return float(likelihood.dispersion * (-posterior.log_likelihood - 0.5 * n * unit.log()))
