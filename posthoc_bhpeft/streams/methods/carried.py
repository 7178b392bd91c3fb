r"""`CarriedPosterior`: each round starts from the posterior of the last. This package's method.

    theta_t = argmin nll_t(theta) + w/2 |theta - theta_{t-1}|^2 in the norm of K_{t-1} + d I
    K_t = K_{t-1} + H_t

with `H_t` the Kronecker-factored GGN of round `t` alone (online structured Laplace, Ritter et al.
2018, https://arxiv.org/abs/1805.07810). At weight `w = 1` this is Bayes' rule in a quadratic world.
The real one needs more: `H` is taken where the model has fitted its labels and its softmax is
saturated, so it says too little of what leaving would cost. Hence a weight above 1, and a GGN at
softened outputs (`Softened`), which does not depend on how well a round was fitted: one weight then
serves rounds learnt by heart and rounds hardly learnt at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from posthoc_bhpeft.api import BayesianPeft, bayesianize
from posthoc_bhpeft.carrying import describe_carried
from posthoc_bhpeft.curvature import Curvature, KroneckerGGN, Softened
from posthoc_bhpeft.data import LengthOrder, TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.merging.consolidate import consolidated
from posthoc_bhpeft.posterior import as_parameters, read_weights
from posthoc_bhpeft.predictive import Linearized, Prediction
from posthoc_bhpeft.prior import TRAINING_FLOOR, TRAINING_WEIGHT, GaussianPrior
from posthoc_bhpeft.selection import Chained, MatchedPrecision, PriorRule
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.rounds import NO_CHOICE, Heads, Round


class Parametrization(str, Enum):
    """What the penalty of a LoRA layer is about.

    `APART` penalises A and B each by its own curvature. `PRODUCT` penalises `B A` by the curvature
    of the product, and does not see how it is split between the two.
    """

    APART = "apart"
    PRODUCT = "product"


@dataclass(frozen=True)
class CarriedPosterior:
    """The last posterior is the prior of the next round.

    Args:
        weight: Of the penalty against which a round is trained; the posterior itself is not
            tempered.
        floor: Isotropic precision beside the carried curvature in the penalty.
        forget: Share of the carried precision to let go a round.
        max_terms: Kronecker terms kept in each block.
        curvature: Estimator of each round's GGN.
        consolidate: After training, move the weights to the minimum of the two quadratics, see
            `merging.consolidate`: what the new data do not need goes back.
        width: Chooses the floor of the posterior that predictions are made with.
        parametrization: What is penalised of a LoRA layer.
    """

    weight: float = TRAINING_WEIGHT
    floor: float = TRAINING_FLOOR / TRAINING_WEIGHT
    forget: float = 0.0
    max_terms: int = 2
    consolidate: bool = True
    curvature: Curvature = field(default_factory=lambda: KroneckerGGN(Softened()))
    width: PriorRule = field(default_factory=lambda: MatchedPrecision(max_rows=256))
    parametrization: Parametrization = Parametrization.APART

    def __post_init__(self) -> None:
        for name in ("weight", "floor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0.")
        known = [one.value for one in Parametrization]
        if self.parametrization not in known:
            raise ConfigError(
                f"parametrization is {self.parametrization!r}; supported are {known}."
            )
        # A file has its value only.
        object.__setattr__(self, "parametrization", Parametrization(self.parametrization))

    @property
    def products(self) -> bool:
        """Whether LoRA layers are held by their products."""
        return self.parametrization is Parametrization.PRODUCT

    def start(self, learner: Learner) -> CarriedRun:
        """No prior yet: the first round is trained the ordinary way."""
        return CarriedRun(self, learner)


class CarriedRun:
    """The method at work: the posterior of the last round.

    Attributes:
        bayes: Of the last round; its blocks face that round's outputs.
        history: Figures of every epoch of the last training.
    """

    def __init__(self, method: CarriedPosterior, learner: Learner) -> None:
        self.method, self.learner = method, learner
        self.bayes: BayesianPeft | None = None
        self.history: tuple[Mapping[str, float], ...] = ()

    def learn(self, round_: Round, index: int) -> None:
        """Train against the carried prior, then make the chained posterior.

        A round without rows, or with nothing to tell apart, has no curvature and is passed over.
        """
        learner, self.history = self.learner, ()
        note = learner.labels.why_not(round_)
        shared = learner.labels.heads is Heads.SHARED
        if note == NO_CHOICE and shared and not learner.started:
            # Without a model yet, the label only waits for others to be told from.
            learner.labels = learner.labels.extended(round_)
        if note:
            return
        learner.meet(round_)
        prior = self.carried()
        self.history = learner.fit(
            [(round_.name, round_.train)],
            penalty=None if prior is None else prior.tempered(self.method.weight),
            seed=learner.seed_of(index),
            validation=round_.validation,
        )
        self.remember(round_, index, prior)

    def carried(self) -> GaussianPrior | None:
        """The prior of the next round, grown to the model's present head; `None` at first."""
        if self.bayes is None:
            return None
        method = self.method
        prior = self.bayes.as_prior(
            forget=method.forget, max_terms=method.max_terms, products=method.products
        )
        return prior.with_floor(method.floor).grown(self.learner.model)

    def remember(self, round_: Round, index: int, prior: GaussianPrior | None) -> None:
        """Fit the round's posterior at the present weights, chained to the last one."""
        learner, method = self.learner, self.method
        with learner.facing(round_.name):
            self.bayes = bayesianize(
                learner.model,
                learner.loader(round_.name, round_.train),
                curvature=method.curvature,
                prior=method.width if prior is None else Chained(prior, method.width),
                predictive=Linearized(max_passes=1),
                products=method.products,
                generator=torch.Generator().manual_seed(learner.seed_of(index)),
                progress=False,
            )
        if prior is not None and method.consolidate:
            self.consolidate()

    def consolidate(self) -> None:
        """Move posterior and model to the minimum of the two quadratics."""
        model, bayes = self.learner.model, self.bayes
        assert bayes is not None
        said = bayes.reason.removeprefix(describe_carried(bayes.posterior))
        posterior = consolidated(bayes.posterior, floor=self.method.floor)
        self.learner.restore(as_parameters(model, posterior.blocks, posterior.mean))
        # Read back, so that the mean is what the model has to the last bit.
        mean = read_weights(model, posterior.blocks)
        posterior = replace(posterior, mean=mean)
        if posterior.prior.products:
            posterior = posterior.with_prior(posterior.prior.linearized_at(mean))
        # How far the weights have moved is another distance now.
        reason = describe_carried(posterior) + said
        self.bayes = replace(bayes, posterior=posterior, reason=reason)

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """The Bayesian predictive, over the outputs of the row's round."""
        learner = self.learner
        if self.bayes is None and learner.labels.names and not learner.started:
            # A single label was met so far, and no model was needed for it.
            n_outputs = len(learner.labels.columns(round_name))
            return torch.full((len(data), n_outputs), 1 / n_outputs, dtype=torch.float64)
        if self.bayes is None:
            return learner.logits(round_name, data).double().softmax(-1)
        found = self.predict(round_name, data).probabilities
        assert found is not None
        return found.double()

    def predict(
        self, round_name: str, data: TextData, *, batch_size: int = 64, progress: bool = False
    ) -> Prediction:
        """The Bayesian prediction of `N` rows in their order, once a round was learnt."""
        bayes = self.bayes
        assert bayes is not None
        loader = self.learner.loader(round_name, data, batch_size, by_length=True)
        # The weights are those of all rounds; how many outputs they make depends on the round.
        n_outputs = len(self.learner.labels.columns(round_name))
        if n_outputs != bayes.posterior.n_outputs:
            bayes = replace(bayes, posterior=replace(bayes.posterior, n_outputs=n_outputs))
        with self.learner.facing(round_name):
            prediction = bayes.predict_loader(loader, progress=progress)
        order = loader.sampler
        assert isinstance(order, LengthOrder)
        return order.restore_prediction(prediction)

    @property
    def state_bytes(self) -> int:
        """The factors carried to the next round; their mean is the model itself."""
        prior = self.carried()
        if prior is None:
            return 0
        tensors = [t for operator in prior.held.values() for t in operator.tensors().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
