r"""`Posterior`: `N(theta, (Lambda0 + H)^-1)` in natural parameters, block by block.

The precision of a block is `d I + K + H`: the prior's floor, what the prior carries from earlier
data (nothing, unless it is an earlier posterior), and the curvature `H`, a sum over the data.
Matrix-vector products use these themselves and are exact for any number of terms; sampling,
log-determinants and functional variances use the eigendecomposition of `K + H`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, Observed, Product
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.evidence import BlockSpectrum, LaplaceEvidence
from posthoc_bhpeft.linalg import (
    HIGH_FLOOR,
    NARROW,
    BlockOperator,
    Eigenbasis,
    Metric,
    OperatorSum,
    merge_terms,
    metric_of,
    side_by_side,
)
from posthoc_bhpeft.prior import GaussianPrior


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the weights of every block.

    Attributes:
        blocks: The blocks it is about.
        mean: Weights `(p, q)` of each block: the trained model's.
        prior: The prior it was made with.
        curvature: `H` of each block and product, the sum over data.
        bases: Eigenbasis of each `K + H`.
        log_likelihood: `log p(D | mean)` in nats.
        n_rows: Number of labelled rows of data.
        n_outputs: `C`, the number of outputs of the model.
        products: LoRA layers whose `B A` has a curvature as well, to be carried on.
    """

    blocks: tuple[Block, ...]
    mean: Mapping[str, Tensor] = field(repr=False)
    prior: GaussianPrior
    curvature: Mapping[str, BlockOperator] = field(repr=False)
    bases: Mapping[str, Eigenbasis] = field(repr=False)
    log_likelihood: float
    n_rows: int
    n_outputs: int
    products: tuple[Product, ...] = field(default=(), repr=False)
    _metrics: dict[Hashable, Mapping[str, Metric]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __repr__(self) -> str:
        n_weights = sum(block.size for block in self.blocks)
        return (
            f"{type(self).__name__}({len(self.blocks)} blocks, {n_weights:,} weights, "
            f"{self.n_rows:,} rows, {self.n_outputs} outputs, {self.prior!r})"
        )

    def with_prior(self, prior: GaussianPrior) -> Posterior:
        """The posterior for another prior; nothing is fitted again.

        A prior about products is linearised around this posterior's mean.
        Only blocks are decomposed again whose basis depends on what is new about the prior.
        """
        known, carried = self.prior.carried, prior.carried
        factors = [block.name for product in prior.products for block in product.factors]
        if any(name not in carried or carried[name] is not known.get(name) for name in factors):
            prior = prior.linearized_at(self.mean)
        changed = {
            name: self.curvature[name]
            for name, basis in self.bases.items()
            if not shares_basis(self.prior, prior, name, basis)
        }
        return replace(self, prior=prior, bases={**self.bases, **decompose_all(prior, changed)})

    def at_noise(self, variance: float, log_likelihood: float) -> Posterior:
        """A posterior fitted at noise variance 1, at another and the log likelihood there."""
        curvature = {name: held.scale(1 / variance) for name, held in self.curvature.items()}
        # Decomposed again rather than scaled: what is loaded later then has the very same numbers.
        bases = decompose_all(self.prior, {name: curvature[name] for name in self.bases})
        return replace(self, curvature=curvature, bases=bases, log_likelihood=log_likelihood)

    def as_prior(
        self, *, forget: float = 0.0, max_terms: int = 2, products: bool = False
    ) -> GaussianPrior:
        """What was learnt, as the prior of the next data: `N(theta, (d I + K + H)^-1)`.

        Args:
            forget: Share of the precision to let go, from 0 (nothing, Bayes' rule) to below 1
                (exponential forgetting: data of `k` rounds ago count `(1 - forget)^k`).
            max_terms: Kronecker terms to keep in `K + H`; more are merged into their nearest
                Kronecker product, the errors told in `merge_errors`.
            products: Hold LoRA layers by their product `B A` rather than by A and B apart.

        Returns:
            The prior, its mean at this posterior's.

        Raises:
            ConfigError: If `forget` is not in `[0, 1)`, or `max_terms` below 1, or there is no
                curvature of products.
        """
        if not 0 <= forget < 1:
            raise ConfigError(f"forget is {forget!r}; it must be at least 0 and below 1.")
        if products and not self.products:
            raise ConfigError(
                "This posterior has no curvature of products. Fit it with products=True: "
                "bayesianize(model, loader, products=True)."
            )
        pairs = self.products if products else ()
        factors = {block.name for product in pairs for block in product.factors}
        parts: list[Observed] = [b for b in self.blocks if b.name not in factors]
        carried, errors = {}, {}
        for part in (*parts, *pairs):
            total = total_curvature(self.prior, part.name, self.curvature[part.name])
            merged = merge_terms(OperatorSum((total,)), max_terms)
            carried[part.name] = merged.operator
            if merged.errors:
                errors[part.name] = merged.total_error
        prior = GaussianPrior(
            dict(self.prior.precision), dict(self.mean), carried, self.blocks, errors, pairs
        )
        return (prior.tempered(1 - forget) if forget else prior).linearized_at(self.mean)

    def evidence(self) -> LaplaceEvidence:
        """What the evidence depends on, apart from the precision of an isotropic prior."""
        return LaplaceEvidence(
            {block.name: self.spectrum(block) for block in self.blocks},
            self.log_likelihood,
            self.n_rows,
            self.n_outputs,
        )

    def spectrum(self, block: Block) -> BlockSpectrum:
        """Eigenvalues of a block's curvature and the squared movement along its eigenvectors."""
        return block_spectrum(
            block, self.bases[block.name], self.mean[block.name], self.prior.mean_of(block)
        )

    def log_marginal_likelihood(self) -> float:
        """Log evidence of the data in nats; under a carried prior, given all earlier data.

        `log p(D|theta) - 1/2 [ |theta - mu0|^2_Lambda0 + log det(Lambda0 + H) - log det Lambda0 ]`
        """
        if not self.prior.carried:
            return self.evidence().log_marginal_likelihood(self.prior.precision)
        of_prior = sum(prior_log_determinant(self.prior, block) for block in self.blocks)
        gain = self.precision_log_determinant() - of_prior
        return self.log_likelihood - 0.5 * (self.squared_movement() + gain)

    def squared_movement(self) -> float:
        """`(theta - mu0)^T Lambda0 (theta - mu0)`, exact: how far the prior was left.

        Twice the penalty; under a prior about products, that of the products themselves.
        """
        return 2 * float(replace(self.prior, blocks=self.blocks).energy(self.mean))

    def variances(self, block: Block) -> Tensor:
        """Variances `1 / (l + d)` along the eigenvectors of a block, `(p, q)`, float64."""
        return 1 / (self.bases[block.name].eigenvalues + self.prior.precision[block.name])

    def metrics(self, tolerance: float) -> Mapping[str, Metric]:
        """`vec(G)^T Sigma vec(H)` of each block, within `tolerance / 2` relative; made once."""
        return self.made_once(
            tolerance,
            lambda: {
                block.name: metric_of(self.bases[block.name], self.variances(block), tolerance)
                for block in self.blocks
            },
        )

    def made_once(
        self, key: Hashable, make: Callable[[], Mapping[str, Metric]]
    ) -> Mapping[str, Metric]:
        """Metrics of blocks, made for the first batch and kept with this posterior for the next."""
        if key not in self._metrics:
            self._metrics[key] = make()
        return self._metrics[key]

    def precision_matvec(self, block: Block, matrix: Tensor) -> Tensor:
        """`(d I + K + H) vec(X)` for a matrix `(..., p, q)`; exact."""
        return self.prior.matvec(block, matrix) + self.curvature[block.name].matvec(matrix)

    def precision_log_determinant(self) -> float:
        """`log det(Lambda0 + H)` over all blocks."""
        return sum(
            log_determinant(self.bases[block.name], self.prior.precision[block.name])
            for block in self.blocks
        )

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            n_samples: `S`.
            generator: Source of randomness; on the CPU, so that a seed means the same anywhere.

        Returns:
            Weights `(S, p, q)` of each block by name.
        """
        drawn = {}
        for block in self.blocks:
            mean = self.mean[block.name]
            noise = torch.randn(n_samples, *block.shape, generator=generator, dtype=torch.float64)
            scaled = noise.to(mean.device) * self.variances(block).to(mean.device).sqrt()
            drawn[block.name] = mean + self.bases[block.name].unproject(scaled.to(mean))
        return drawn


def total_curvature(prior: GaussianPrior, name: str, curvature: BlockOperator) -> BlockOperator:
    """`K + H` of a block: what the prior carries, and what this data adds."""
    carried = prior.carried.get(name)
    return curvature if carried is None else OperatorSum((carried, curvature))


def decompose(prior: GaussianPrior, name: str, curvature: BlockOperator) -> Eigenbasis:
    """Eigenbasis of `K + H`, the best for the prior's floor where several terms need a choice."""
    total = total_curvature(prior, name, curvature)
    if isinstance(total, OperatorSum):
        return total.decompose(prior.precision[name])
    return total.decompose()


def decompose_all(
    prior: GaussianPrior, curvature: Mapping[str, BlockOperator]
) -> dict[str, Eigenbasis]:
    """`decompose` of every block, several at once where that pays; in the order of `curvature`."""
    totals = {name: total_curvature(prior, name, one) for name, one in curvature.items()}
    narrow = {name for name, total in totals.items() if is_narrow(total)}
    makers = {name: partial(decompose, prior, name, one) for name, one in curvature.items()}
    return side_by_side(makers, narrow)


def is_narrow(operator: BlockOperator) -> bool:
    """Whether an operator is on the processor, and made of narrow matrices."""
    tensors = operator.tensors().values()
    return all(one.device.type == "cpu" and max(one.shape, default=1) <= NARROW for one in tensors)


def shares_basis(one: GaussianPrior, other: GaussianPrior, name: str, known: Eigenbasis) -> bool:
    """Whether a block's basis under one prior, `known`, is also that under the other."""
    carried = one.carried.get(name)
    if carried is not other.carried.get(name):
        return False
    lowest = min(one.precision[name], other.precision[name])
    # Of several terms, the basis depends on low floors only; see `linalg.joint_eigenbasis`.
    return carried is None or lowest >= HIGH_FLOOR * float(known.eigenvalues.mean())


def log_determinant(basis: Eigenbasis, precision: float) -> float:
    """`log det(d I + X)`, with the eigenbasis of `X`."""
    return float((basis.eigenvalues + precision).log().sum()) - 2 * basis.log_volume


def prior_log_determinant(prior: GaussianPrior, block: Block) -> float:
    """`log det(d I + K)` of one block."""
    precision, carried = prior.precision[block.name], prior.carried.get(block.name)
    if carried is None:
        return block.size * math.log(precision)
    terms = OperatorSum((carried,))
    return log_determinant(terms.decompose(precision), precision)


def block_spectrum(
    block: Block, basis: Eigenbasis, weights: Tensor, prior_mean: Tensor | None
) -> BlockSpectrum:
    """Eigenvalues and squared movement of one block, flat and in float64 on the CPU."""
    movement = weights if prior_mean is None else weights - prior_mean
    coordinates = basis.project(movement).double()
    return BlockSpectrum(
        block.kind,
        basis.eigenvalues.double().flatten().cpu(),
        coordinates.square().flatten().cpu(),
    )


def read_weights(model: nn.Module, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Present weights `(p, q)` of each block, detached copies in float32 or wider."""
    parameters = dict(model.named_parameters())
    weights = {}
    for block in blocks:
        matrix = block.view.read(parameters[block.parameter].detach())
        wide = matrix.dtype in (torch.float32, torch.float64)
        weights[block.name] = matrix.clone() if wide else matrix.float()
    return weights


def as_parameters(
    model: nn.Module, blocks: Sequence[Block], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Whole parameters by name, from the matrices `(p, q)` of their blocks."""
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(block.parameter for block in blocks)
    filled = {name: parameters[name].detach().clone() for name in names}
    for block in blocks:
        block.view.write(filled[block.parameter], weights[block.name])
    return filled
