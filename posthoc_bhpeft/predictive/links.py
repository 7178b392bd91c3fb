r"""Links: from Gaussian outputs `N(f, V)` to probabilities.

The softmax of a Gaussian has no closed-form mean. Each link below is one way to take it;
`LogOdds`, the default, never changes which class is the most probable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood.labels import is_absent

PROBIT = math.pi / 8
"""`sigmoid(x) ~ Phi(sqrt(pi / 8) x)`: slopes agree at zero (MacKay 1992)."""


class Link(Protocol):
    """From a Gaussian over outputs to the expected probabilities."""

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Expected class probabilities `(N, C)` of logits `N(mean, covariance (N, C, C))`."""
        ...

    def direction(self, mean: Tensor) -> Tensor | None:
        """The one direction `(N, C)`, of unit length, whose variance `softmax` needs.

        `None` where it needs the whole covariance.
        """
        return None

    def information(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Mutual information `(N,)` in nats of label and weights: the epistemic uncertainty.

        `H[E softmax(f)] - E H[softmax(f)]` by Monte Carlo (Houlsby et al. 2011,
        https://arxiv.org/abs/1112.5745).
        """
        draws = MonteCarlo(256).draw(mean, covariance).softmax(-1)
        return (entropy(draws.mean(0)) - entropy(draws).mean(0)).clamp_min(0)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Expected probabilities `(N, C)` of independent answers, of logits `N(mean, variance)`."""
        ...


@dataclass(frozen=True)
class MonteCarlo(Link):
    """`mean_s softmax(f + L e_s)`, `L L^T = V`; exact as the number of samples grows.

    The standard normals `e_s` are the same for every row (common random numbers), so that rows are
    comparable and a row's probabilities do not depend on the batch it came in.

    Args:
        samples: `S`; the standard error of a probability is below `0.5 / sqrt(S)`.
        seed: Of the standard normals.
    """

    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"MonteCarlo(samples={self.samples}): at least 1 is needed.")

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.draw(mean, covariance).softmax(-1).mean(0)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return self.draw(mean, torch.diag_embed(variance)).sigmoid().mean(0)

    def draw(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Outputs `(S, N, C)` drawn from `N(mean, covariance)`."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples, mean.shape[-1])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean)
        return mean + torch.einsum("nck,sk->snc", matrix_root(covariance), noise)


@dataclass(frozen=True)
class Probit(Link):
    """`softmax(f / sqrt(1 + pi/8 diag V))`, the multi-class probit approximation (MacKay 1992)."""

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        return (mean / torch.sqrt(1 + PROBIT * variance)).softmax(-1)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return (mean / torch.sqrt(1 + PROBIT * variance)).sigmoid()


@dataclass(frozen=True)
class LaplaceBridge(Link):
    """Mean of the Dirichlet that the Laplace bridge maps `N(f, V)` to.

    `a_c = (1 - 2/C + exp(f_c) / C^2 sum_l exp(-f_l)) / V_cc` for centred logits
    (Hobbhahn et al. 2022, https://arxiv.org/abs/2003.01227). Meant for wide posteriors; for narrow
    ones it is more certain than `MonteCarlo`. Choices that a row does not have take no part: the
    Dirichlet is over those that it has.
    """

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        absent = is_absent(mean)
        there = (~absent).to(mean)
        n_classes = there.sum(-1, keepdim=True)
        # In logarithms, since exp(100) is no number in half of the types. A shift of all logits
        # falls out of exp(f_c) exp(-f_l), so none has to be taken off.
        inverse_sum = (-mean).masked_fill(absent, -torch.inf).logsumexp(-1, keepdim=True)
        grown = mean + inverse_sum - 2 * n_classes.log()
        variance = among(covariance, there).diagonal(dim1=-2, dim2=-1).clamp_min(1e-12)
        alpha = torch.logaddexp((1 - 2 / n_classes).clamp_min(0).log(), grown) - variance.log()
        return alpha.masked_fill(absent, -torch.inf).softmax(-1)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        raise ConfigError(
            "LaplaceBridge() is defined for softmax outputs. For multi-label outputs use Probit() "
            "or MonteCarlo()."
        )


@dataclass(frozen=True)
class LogOdds(Link):
    r"""One dimension: the log-odds of the predicted class against all others.

        M = f_m - log sum_{c != m} exp f_c,   a = dM/df = e_m - w,   v = a^T V a,
        P(m) = sigmoid(M / sqrt(1 + pi/8 v)),   P(c) = (1 - P(m)) w_c

    with `m` the most probable class and `w` the other classes' probabilities, normalised. For two
    classes this is MacKay's (1992) probit approximation exactly. The most probable class stays what
    it was, and is never more probable than the network says: rows with `M <= 0` are left alone.

    The variance of one direction a row is enough, so a prediction costs one backward pass whatever
    the number of classes. And with more than two classes it is the sharper link: Monte Carlo and
    multi-class probit soften classes that are far away as much as the runner-up, and sampling flips
    the predicted class where variances differ between classes.
    """

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.softened(mean, self.variance(mean, covariance))

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return Probit().sigmoid(mean, variance)

    def direction(self, mean: Tensor) -> Tensor:
        return F.normalize(self.gradient(mean), dim=-1)

    def information(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.information_at(mean, self.variance(mean, covariance))

    @staticmethod
    def softened(mean: Tensor, variance: Tensor) -> Tensor:
        """Probabilities `(N, C)` where the log-odds have variance `v`, `(N,)`."""
        best = mean.argmax(-1, keepdim=True)
        top = confidence(LogOdds.margin(mean), variance).unsqueeze(-1)
        return (other_classes(mean) * (1 - top)).scatter(-1, best, top)

    @staticmethod
    def information_at(mean: Tensor, variance: Tensor) -> Tensor:
        """`information` where the log-odds have variance `v`, `(N,)`."""
        # The other classes share what is left in fixed proportions, so only the binary part counts.
        margin, deviation = LogOdds.margin(mean), variance.sqrt()
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        points = torch.as_tensor(nodes, dtype=torch.float64, device=mean.device)
        share = torch.as_tensor(weights / weights.sum(), device=mean.device)
        each = (margin.double()[..., None] + deviation.double()[..., None] * points).sigmoid()
        expected = binary_entropy(each @ share)
        return (expected - binary_entropy(each) @ share).clamp_min(0).to(mean)

    @staticmethod
    def margin(mean: Tensor) -> Tensor:
        """`M`, the log-odds of the most probable class, `(N,)`."""
        best = mean.argmax(-1, keepdim=True)
        others = mean.scatter(-1, best, -torch.inf)
        return mean.gather(-1, best).squeeze(-1) - others.logsumexp(-1)

    @staticmethod
    def gradient(mean: Tensor) -> Tensor:
        """`a = e_m - w`, the gradient of the margin in the logits, `(N, C)`."""
        return (-other_classes(mean)).scatter(-1, mean.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def variance(mean: Tensor, covariance: Tensor) -> Tensor:
        """`v = a^T V a`, the variance of the margin, `(N,)`."""
        gradient = LogOdds.gradient(mean)
        # Not one einsum of three: planning it takes longer than computing it.
        projected = (covariance @ gradient.unsqueeze(-1)).squeeze(-1)
        return (projected * gradient).sum(-1).clamp_min(0)


@dataclass(frozen=True)
class Tempered(Link):
    """Another link, at a temperature: outputs `N(f / T, V / T^2)`.

    Below 1 predictions get surer, above 1 less sure; the most probable class of `LogOdds` stays
    what it was.

    Args:
        temperature: `T`.
        link: Which link.
    """

    temperature: float
    link: Link = field(default_factory=LogOdds)

    def __post_init__(self) -> None:
        given: Any = self.temperature
        # A number of numpy would be written otherwise before it is saved than after.
        number = float(given) if isinstance(given, Real) or is_scalar(given) else math.nan
        if not 0 < number < math.inf:
            raise ConfigError(f"Tempered({given!r}): a temperature is one number above 0.")
        object.__setattr__(self, "temperature", number)

    def softmax(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.link.softmax(self.divided(mean), covariance / self.temperature**2)

    def direction(self, mean: Tensor) -> Tensor | None:
        return self.link.direction(self.divided(mean))

    def information(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.link.information(self.divided(mean), covariance / self.temperature**2)

    def sigmoid(self, mean: Tensor, variance: Tensor) -> Tensor:
        return self.link.sigmoid(mean / self.temperature, variance / self.temperature**2)

    def divided(self, mean: Tensor) -> Tensor:
        """Logits divided by the temperature; a choice that is not there keeps its mark."""
        return torch.where(is_absent(mean), mean, mean / self.temperature)


def is_scalar(value: Any) -> bool:
    """Whether it is an array or tensor of one number without an axis."""
    return getattr(value, "ndim", None) == 0


def among(covariance: Tensor, there: Tensor) -> Tensor:
    """Covariances `(N, C, C)` of the logits less the mean of those that are there, `(N, C)`.

    Rows that have all choices are left as they are: theirs are centred already, unless a caller
    wants them otherwise.
    """
    some = there / there.sum(-1, keepdim=True)
    shift = torch.eye(there.shape[-1]).to(there) - some.unsqueeze(-2)
    whole = there.bool().all(-1)[:, None, None]
    return torch.where(whole, covariance, shift @ covariance @ shift.transpose(-2, -1))


def confidence(margin: Tensor, variance: Tensor) -> Tensor:
    """`sigmoid(M / sqrt(1 + pi/8 v))`, never above `sigmoid(M)`: only a majority is softened."""
    softened = (margin / torch.sqrt(1 + PROBIT * variance)).sigmoid()
    return torch.minimum(softened, margin.sigmoid())


def other_classes(mean: Tensor) -> Tensor:
    """Probabilities `(N, C)` given that it is not the most probable class, which gets 0."""
    return mean.scatter(-1, mean.argmax(-1, keepdim=True), -torch.inf).softmax(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """`-sum_c p_c log p_c` over the last axis, in nats."""
    surprise: Tensor = torch.special.xlogy(probabilities, probabilities)
    return -surprise.sum(-1)


def binary_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each yes-or-no answer, in nats."""
    return entropy(torch.stack([probabilities, 1 - probabilities], -1))


def matrix_root(covariance: Tensor) -> Tensor:
    """The symmetric root `(N, C, C)` of covariances that may be singular.

    Eigenvectors are unique only up to their sign, and less where eigenvalues are equal, so they
    change with rounding, batch and device; the symmetric root does not.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    scaled = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    root: Tensor = scaled @ vectors.transpose(-2, -1)
    return root.to(covariance)
