r"""`GaussianPrior`: isotropic in each block, or carried over from an earlier posterior.

The precision of a block is `Lambda0 = d I + K`: an isotropic *floor* `d` and, where the prior is
what an earlier fit learnt, its curvature `K`, a Kronecker product or a sum of some
(online Laplace, Ritter et al. 2018, https://arxiv.org/abs/1805.07810). The quadratic penalty that
such a prior adds to a loss is known as elastic weight consolidation (EWC, Kirkpatrick et al. 2017,
https://arxiv.org/abs/1612.00796), there with a diagonal precision.

A LoRA layer may be held by its product `M = B A` instead of by its factors. Its penalty is then
`1/2 |M - M0|^2_K + d/2 (|A - A0|^2 + |B - B0|^2)`, where `M` is the same for `B Q` and `Q^-1 A`.
That is no quadratic form in the factors; posteriors use its linearisation, see `linearized_at`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, Product, discover, find_products
from posthoc_bhpeft.blocks.tape import widen
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.linalg import (
    BlockOperator,
    grow_rows,
    pulled_to_left,
    pulled_to_right,
    quadratic_form,
)

TRAINING_WEIGHT, TRAINING_FLOOR = 30.0, 0.03
"""Of the penalty in training; the weight is the best of `benchmarks/streams.py --tune`."""


@dataclass(frozen=True)
class GaussianPrior:
    """`N(mu0, (d I + K)^-1)` in each block.

    Attributes:
        precision: The floor `d` by block name, in inverse squared units of the weights; above 0.
        mean: `mu0` `(p, q)` by block name; blocks left out have mean zero.
        carried: `K` by block name, a sum over the data seen so far; blocks left out have none.
        blocks: What it is about, for `penalty`; `Posterior.as_prior` fills it in.
        merge_errors: Relative Frobenius error of the terms merged into `K`, by block name.
        products: LoRA layers held by `M = B A`: `carried` has `K` under the product's name, and
            under those of its factors what follows from it.
    """

    precision: Mapping[str, float]
    mean: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    carried: Mapping[str, BlockOperator] = field(default_factory=dict, repr=False)
    blocks: tuple[Block, ...] = field(default=(), repr=False)
    merge_errors: Mapping[str, float] = field(default_factory=dict, repr=False)
    products: tuple[Product, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, value in self.precision.items():
            if not value > 0:
                raise ConfigError(
                    f"The prior precision of block {name!r} is {value!r}; it must be above 0."
                )
        for product in self.products:
            if product.name not in self.carried:
                raise ConfigError(
                    f"The prior holds the product {product.name!r} and has no curvature of it in "
                    "carried=. Take it from bayes.as_prior(products=True)."
                )

    def __repr__(self) -> str:
        # By name it would be a page.
        ordered = sorted(set(self.precision.values()))
        floor = " to ".join(f"{one:.3g}" for one in dict.fromkeys(ordered[:1] + ordered[-1:]))
        carried = f", carried curvature of {len(self.carried)}" if self.carried else ""
        return f"{type(self).__name__}({len(self.precision)} blocks, precision {floor}{carried})"

    @classmethod
    def isotropic(
        cls,
        blocks: Sequence[Block],
        precision: float,
        mean: Mapping[str, Tensor] | None = None,
    ) -> GaussianPrior:
        """One precision for all blocks, around zero or around given weights."""
        return cls({b.name: precision for b in blocks}, mean or {}, blocks=tuple(blocks))

    @property
    def held(self) -> dict[str, BlockOperator]:
        """`carried` without what follows from the rest: the factors of products."""
        factors = {block.name for product in self.products for block in product.factors}
        return {name: held for name, held in self.carried.items() if name not in factors}

    def mean_of(self, block: Block) -> Tensor | None:
        """The mean of a block, or `None` for zero."""
        return self.mean.get(block.name)

    def movement(self, block: Block, weights: Tensor) -> Tensor:
        """`weights - mu0`, `(p, q)`."""
        mean = self.mean_of(block)
        return weights if mean is None else weights - mean.to(weights)

    def matvec(self, block: Block, matrix: Tensor) -> Tensor:
        """`(d I + K) vec(X)` for a matrix `(..., p, q)`; exact for any number of terms."""
        floor = self.precision[block.name] * matrix
        carried = self.carried.get(block.name)
        return floor if carried is None else floor + carried.matvec(matrix)

    def penalty(self, model: nn.Module) -> Tensor:
        r"""`1/2 (theta - mu0)^T Lambda0 (theta - mu0)`, summed over blocks and products.

        The negative log density of the prior at the model's weights, up to a constant: what a loss
        needs so that its minimum is the mode of the posterior.

        ```python
        loss = nll + prior.penalty(model) / n_data      # nll: the mean over a batch
        ```

        Args:
            model: The model in training; gradients flow into its weights.

        Returns:
            A scalar in float32 or wider, in nats over the whole data.

        Raises:
            ConfigError: If the prior was made by hand without blocks.
            ModelError: If the model lacks a block, or its head has grown since.
        """
        if not self.blocks:
            raise ConfigError(
                "This prior does not know its blocks. Take it from bayes.as_prior(), or pass "
                "GaussianPrior(..., blocks=discover(model))."
            )
        parameters = dict(model.named_parameters())
        self.check_model(parameters)
        device = next(iter(parameters.values())).device
        with torch.autocast(device.type, enabled=False):
            weights = {b.name: widen(b.view.read(parameters[b.parameter])) for b in self.blocks}
            return self.energy(weights).to(device)

    def energy(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The penalty at weights `(p, q)` by block name, exact; see `penalty`."""
        held, moved = self.held, {b.name: self.movement(b, weights[b.name]) for b in self.blocks}
        total = torch.zeros((), device=next(iter(weights.values())).device)
        for name, movement in moved.items():
            pulled = self.precision[name] * movement
            if name in held:
                pulled = pulled + held[name].matvec(movement)
            total = total + 0.5 * (movement * pulled).sum().to(total.device)
        for product in self.products:
            form = quadratic_form(held[product.name], *product.change(weights, moved))
            total = total + 0.5 * form.to(total.device)
        return total

    def check_model(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise unless every block is in a model, in its shape.

        Raises:
            ModelError: Naming the first block that is not.
        """
        for block in self.blocks:
            if block.parameter not in parameters:
                raise ModelError(
                    f"The prior is about {block.parameter!r}, which the model does not have. Pass "
                    "the model that the posterior was fitted on, not a wrapper around it "
                    "(accelerator.unwrap_model(model))."
                )
            try:
                shape = block.view.read(parameters[block.parameter]).shape
            except RuntimeError:
                shape = parameters[block.parameter].shape
            if tuple(shape) != block.shape:
                raise ModelError(
                    f"Block {block.name!r} has shape {tuple(shape)} in the model and {block.shape} "
                    "in the prior. If the head has grown by new labels, use prior.grown(model)."
                )

    def tempered(self, weight: float) -> GaussianPrior:
        """The prior with its whole precision multiplied: above 1 it holds on more strongly.

        Raises:
            ConfigError: If `weight` is not above 0.
        """
        if not weight > 0:
            raise ConfigError(f"weight is {weight!r}; it must be above 0.")
        return replace(
            self,
            precision={name: weight * value for name, value in self.precision.items()},
            carried={name: operator.scale(weight) for name, operator in self.carried.items()},
        )

    def for_training(
        self, weight: float = TRAINING_WEIGHT, floor: float = TRAINING_FLOOR
    ) -> GaussianPrior:
        """The prior to train against; the chained posterior still takes the prior itself.

        ```python
        prior = bayes.as_prior()
        guard = prior.for_training()
        loss = nll + guard.penalty(model) / n_data
        bayes = bayesianize(model, new_loader, prior=Chained(prior))
        ```

        Two things differ from Bayes' rule. Curvature is taken where the model has fitted its labels
        and its softmax is flat, so it says too little of what leaving would cost: `weight` makes up
        for it. And the floor of a fitted posterior was chosen so that predictions are calibrated;
        as a belief about where the weights will go it would stop them from learning.

        Args:
            weight: Of the carried curvature.
            floor: Isotropic precision, after weighing.
        """
        return self.tempered(weight).with_floor(floor)

    def linearized_at(self, weights: Mapping[str, Tensor]) -> GaussianPrior:
        r"""The same prior, with `K` of the products' factors as it is around other weights.

        With `M ~ M* + dB A* + B* dA` and `L (x) R` the precision of `M` (Gauss-Newton), a factor's
        is `(B*^T L B*) (x) R` for A and `L (x) (A* R A*^T)` for B; what they share, off the
        diagonal, is dropped as between any two blocks. The Hessian itself where `M* = M0`. The
        penalty is not changed by this.

        Args:
            weights: `(p, q)` by block name.
        """
        carried = dict(self.carried)
        for product in self.products:
            of_product, (down, up) = carried[product.name], product.factors
            carried[down.name] = pulled_to_right(of_product, weights[up.name])
            carried[up.name] = pulled_to_left(of_product, weights[down.name])
        return replace(self, carried=carried)

    def with_floor(self, precision: float) -> GaussianPrior:
        """The same prior with another floor in every block."""
        return replace(self, precision=dict.fromkeys(self.precision, precision))

    def grown(self, model: nn.Module) -> GaussianPrior:
        """The prior for a model whose head has got rows for new labels, at its end.

        About the new rows it knows nothing but the floor, around their present weights.

        Args:
            model: Its blocks are those of the prior, some with more rows.

        Raises:
            ModelError: If a block is missing, has fewer rows or other columns.
        """
        parameters = dict(model.named_parameters())
        found = {block.name: block for block in discover(model)}
        means, carried = dict(self.mean), dict(self.carried)
        for old in self.blocks:
            block = found.get(old.name)
            if block is None or block.shape[0] < old.shape[0] or block.shape[1] != old.shape[1]:
                raise ModelError(
                    f"Block {old.name!r} has shape {old.shape} in the prior and "
                    f"{None if block is None else block.shape} in the model: it did not grow by "
                    "rows at its end. Start from the model of the earlier posterior."
                )
            if block.shape == old.shape:
                continue
            present = widen(block.view.read(parameters[block.parameter].detach())).clone()
            present[: old.shape[0]] = means[old.name].to(present) if old.name in means else 0.0
            means[old.name] = present
            if old.name in carried:
                carried[old.name] = grow_rows(carried[old.name], block.shape[0])
        blocks = tuple(found[old.name] for old in self.blocks)
        names = {product.name for product in self.products}
        products = tuple(one for one in find_products(blocks) if one.name in names)
        carried |= {one.name: grow_rows(carried[one.name], one.shape[0]) for one in products}
        return replace(self, mean=means, carried=carried, blocks=blocks, products=products)

    def check_blocks(self, blocks: Sequence[Block]) -> None:
        """Raise unless the prior is about just these blocks, in their shapes.

        Raises:
            ConfigError: Naming the first that differs.
        """
        shapes = {block.name: block.shape for block in blocks}
        own = {block.name: block for block in self.blocks}
        for name in dict.fromkeys([*shapes, *self.precision]):
            known = [tuple(m[name].shape) for m in (own, self.mean, self.carried) if name in m]
            missing = name not in shapes or name not in self.precision
            if missing or any(shape != shapes[name] for shape in known):
                raise ConfigError(
                    f"prior= is about other blocks: {name!r} has shape "
                    f"{shapes.get(name, 'none')} in the model, {known[0] if known else 'none'} in "
                    "the prior. It must come from the same model, tuned on; if its head has grown "
                    "by new labels, pass prior.grown(model)."
                )
