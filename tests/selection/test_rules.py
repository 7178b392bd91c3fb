"""Rules for the prior precision: known by hand, by a grid, or by a brute-force search."""

import gc
import math
import re

import pytest
import torch

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import Kind, discover
from posthoc_bhpeft.curvature import DenseGGN
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.evidence import HIGHEST, BlockSpectrum, LaplaceEvidence
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import MAP, LaplaceBridge, Linearized, MonteCarlo, Probit
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import (
    FixedPrecision,
    Grouping,
    HeldOut,
    LaplaceFit,
    MarginalLikelihood,
    VisiblePrecision,
    gaussian_nll,
)
from tests.hybrid.families import tiny_loader
from tests.models import hybrid, mlp, pairs, seeded, targets


def flat_spectrum(kind, eigenvalue, movement, size=4):
    values = torch.full((size,), eigenvalue, dtype=torch.float64)
    return BlockSpectrum(kind, values, torch.full((size,), movement / size, dtype=torch.float64))


SPECTRA = {
    "a": flat_spectrum(Kind.LORA, 2.0, 4.0),
    "b": flat_spectrum(Kind.LORA, 5.0, 1.0),
    "c": flat_spectrum(Kind.PREFIX, 1.0, 8.0),
}


def a_fit(**kwargs):
    evidence = LaplaceEvidence(SPECTRA, -10.0, 20, 3, **kwargs)
    return LaplaceFit(evidence, Categorical(), lambda loader, link: iter(()), iter, [])


def fixed_point(eigenvalue, movement, size=4):
    """The positive root of `size l / (l + d) = d m`."""
    return (-eigenvalue + math.sqrt(eigenvalue**2 + 4 * eigenvalue * size / movement)) / 2


# ---------------------------------------------------------------- grouping


@pytest.mark.parametrize(
    ("per", "groups"),
    [
        (Grouping.MODEL, {"all": ["a", "b", "c"]}),
        (Grouping.KIND, {"lora": ["a", "b"], "prefix": ["c"]}),
        (Grouping.BLOCK, {"a": ["a"], "b": ["b"], "c": ["c"]}),
    ],
)
def test_groups(per, groups):
    assert per.groups(SPECTRA) == groups


# ---------------------------------------------------------------- fixed


def test_fixed_is_the_same_for_every_block():
    choice = FixedPrecision(3.5).choose(a_fit())
    assert choice.precision == {"a": 3.5, "b": 3.5, "c": 3.5}
    assert choice.noise_variance is None
    assert "3.5" in choice.reason


@pytest.mark.parametrize("value", [0, -2.0, math.nan])
def test_a_fixed_precision_must_be_positive(value):
    with pytest.raises(ConfigError, match="above 0"):
        FixedPrecision(value)


# ---------------------------------------------------------------- marginal likelihood


def test_one_precision_a_block_by_hand():
    choice = MarginalLikelihood(Grouping.BLOCK).choose(a_fit())
    by_hand = {"a": fixed_point(2, 4), "b": fixed_point(5, 1), "c": fixed_point(1, 8)}
    assert choice.precision == pytest.approx(by_hand)


def test_one_precision_a_kind_is_shared_inside_it():
    choice = MarginalLikelihood(Grouping.KIND).choose(a_fit())
    assert choice.precision["a"] == choice.precision["b"]
    assert choice.precision["c"] == pytest.approx(fixed_point(1, 8))
    low, high = sorted([fixed_point(2, 4), fixed_point(5, 1)])
    assert low < choice.precision["a"] < high


def test_finer_groups_have_no_lower_evidence():
    fit = a_fit()
    values = [
        fit.evidence.log_marginal_likelihood(MarginalLikelihood(per).choose(fit).precision)
        for per in (Grouping.MODEL, Grouping.KIND, Grouping.BLOCK)
    ]
    assert values[0] < values[1] < values[2]


def test_the_reason_names_precision_evidence_and_effective_parameters():
    fit = a_fit()
    choice = MarginalLikelihood().choose(fit)
    (d,) = set(choice.precision.values())
    assert f"{d:.3g}" in choice.reason
    assert f"{fit.evidence.log_marginal_likelihood(choice.precision):.1f} nats" in choice.reason
    assert "effective parameters" in choice.reason
    assert "lora" in MarginalLikelihood(Grouping.KIND).choose(fit).reason


def test_what_a_rule_may_multiply_says_nothing_of_effective_parameters():
    assert "effective parameters" not in VisiblePrecision().choose(a_fit()).reason
    model, loader = mlp(3, 4, 3), pairs((20, 3), 3)
    bayes = bayesianize(model, loader, prior=VisiblePrecision(), progress=False)
    assert bayes.explain().count("effective parameters") == 1
    assert "nats.\n" in bayes.explain()


def test_the_chosen_precision_is_the_best_of_a_real_fit():
    model, loader = mlp(3, 4, 3), pairs((20, 3), 3)
    bayes = bayesianize(model, loader, prior=MarginalLikelihood(), progress=False)
    best = bayes.log_marginal_likelihood()
    for k in range(-40, 41):
        d = next(iter(bayes.posterior.prior.precision.values())) * 1.1**k
        prior = GaussianPrior.isotropic(bayes.blocks, d)
        assert bayes.posterior.with_prior(prior).log_marginal_likelihood() <= best + 1e-9


# ---------------------------------------------------------------- held out


def over_confident(seed=0, scale=4.0):
    """A classifier that is too sure, few training rows, and held-out rows with random labels."""
    model = mlp(3, 4, 3, seed=seed)
    with torch.no_grad():
        model[2].weight.mul_(scale)
    return model, pairs((10, 3), 3, seed=seed), pairs((15, 3), 3, seed=seed + 50)


def mean_nll(bayes, loader, predictive=None):
    prediction = bayes.predict_loader(loader, predictive, progress=False)
    rows = prediction.probabilities.gather(1, prediction.labels[:, None])
    return float(-rows.log().mean())


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit()], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_held_out_is_never_worse_than_the_model_on_its_rows(seed, link):
    model, loader, held_out = over_confident(seed)
    bayes = bayesianize(
        model,
        loader,
        prior=HeldOut(held_out, link=link),
        predictive=Linearized(link),
        progress=False,
    )
    # The search reads variances from bins of eigenvalues, so the two differ by a little.
    assert mean_nll(bayes, held_out) <= mean_nll(bayes, held_out, MAP()) + 1e-3


def test_held_out_finds_the_best_of_a_brute_force_search():
    model, loader, held_out = over_confident()
    link, candidates = MonteCarlo(256), tuple(10.0 ** (k / 2) for k in range(-6, 9))
    rule = HeldOut(held_out, link=link, candidates=candidates)
    bayes = bayesianize(model, loader, prior=rule, predictive=Linearized(link), progress=False)
    values = {
        d: mean_nll(
            bayesianize(
                model,
                loader,
                prior=FixedPrecision(d),
                predictive=Linearized(link),
                progress=False,
            ),
            held_out,
        )
        for d in candidates
    }
    (chosen,) = set(bayes.posterior.prior.precision.values())
    assert values[chosen] <= min(values.values()) + 2e-3
    assert max(values.values()) > min(values.values()) + 0.02


def test_held_out_keeps_the_model_where_width_can_only_hurt():
    model, loader, _ = over_confident()
    right = [(x, model(x).argmax(-1)) for x, _ in loader]
    bayes = bayesianize(model, loader, prior=HeldOut(right), progress=False)
    assert set(bayes.posterior.prior.precision.values()) == {HIGHEST}
    assert "30 held-out rows" not in bayes.reason
    assert "20 held-out rows" in bayes.reason


def test_held_out_takes_rows_without_a_label_out():
    model, loader, held_out = over_confident()
    inputs = torch.randn(7, 3, generator=seeded(4), dtype=torch.float64)
    more = [*held_out, (inputs, torch.full((7,), -100))]
    plain = bayesianize(model, loader, prior=HeldOut(held_out), progress=False)
    masked = bayesianize(model, loader, prior=HeldOut(more), progress=False)
    assert masked.reason == plain.reason
    assert masked.posterior.prior == plain.posterior.prior


def test_held_out_works_on_a_hybrid():
    model = hybrid()
    training, held_out = tiny_loader(model), tiny_loader(model, rows=3)
    bayes = bayesianize(model, training, prior=HeldOut(held_out), progress=False)
    assert mean_nll(bayes, held_out) <= mean_nll(bayes, held_out, MAP()) + 1e-3


@pytest.mark.parametrize(
    "held_out", [[], [(torch.ones(2, 3).double(), torch.tensor([-100, -100]))]]
)
def test_held_out_without_a_labelled_row_is_refused(held_out):
    with pytest.raises(DataError, match=r"HeldOut.*no labelled"):
        bayesianize(mlp(3, 2), pairs((4, 3), 2), prior=HeldOut(held_out), progress=False)


def test_held_out_that_yields_nothing_is_refused_by_the_rule_itself():
    with pytest.raises(DataError, match="no labelled"):
        HeldOut([]).choose(a_fit())


def gaussian_rows_nll(bayes, loader):
    prediction = bayes.predict_loader(loader, progress=False)
    noise = bayes.likelihood.noise_variance
    covariance = prediction.covariance
    return float(gaussian_nll(prediction.logits, covariance, prediction.labels, noise).mean())


@pytest.mark.parametrize("likelihood", [Gaussian(0.02), Gaussian()], ids=repr)
def test_held_out_regression_finds_the_best_of_a_brute_force_search(likelihood):
    model, generator = mlp(3, 4, 1), seeded(2)

    def batch(n):
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return x, (model(x) + 0.05 * noise + 0.15 * x[:, :1]).detach()

    training, held_out = [batch(40)], [batch(40)]
    candidates = tuple(10.0 ** (k / 2) for k in range(-6, 11))
    settings = {"curvature": DenseGGN(), "progress": False}
    rule = HeldOut(held_out, candidates=candidates)
    bayes = bayesianize(model, training, likelihood=likelihood, prior=rule, **settings)
    at_noise = Gaussian(bayes.likelihood.noise_variance)
    values = {
        d: gaussian_rows_nll(
            bayesianize(model, training, likelihood=at_noise, prior=FixedPrecision(d), **settings),
            held_out,
        )
        for d in candidates
    }
    (chosen,) = set(bayes.posterior.prior.precision.values())
    assert values[chosen] <= min(values.values()) + 2e-4
    assert gaussian_rows_nll(bayes, held_out) == pytest.approx(values[chosen], abs=1e-9)
    assert max(values.values()) > min(values.values()) + 0.03
    said = float(re.search(r"rows: (\S+) nats", bayes.reason).group(1))
    assert said == pytest.approx(values[chosen], abs=3e-3)


def test_held_out_multilabel():
    model = mlp(3, 4, 2)
    loader = [(x, (y > 0).double()) for x, y in targets((12, 3), 2)]
    bayes = bayesianize(
        model, loader, likelihood=Bernoulli(), prior=HeldOut(loader[1:]), progress=False
    )

    def nll(predictive=None):
        prediction = bayes.predict_loader(loader[1:], predictive, progress=False)
        return float(
            torch.nn.functional.binary_cross_entropy(prediction.probabilities, prediction.labels)
        )

    assert nll() <= nll(MAP()) + 1e-3


def test_gaussian_nll_is_that_of_a_multivariate_normal():
    root = torch.randn(4, 2, 2, generator=seeded(), dtype=torch.float64)
    covariance = root @ root.transpose(1, 2)
    mean, labels = torch.zeros(4, 2).double(), torch.ones(4, 2).double()
    noisy = covariance + 0.3 * torch.eye(2).double()
    exact = 0.5 * (
        torch.einsum("ni,nij,nj->n", labels, torch.linalg.inv(noisy), labels)
        + torch.logdet(noisy)
        + 2 * math.log(2 * math.pi)
    )
    assert torch.allclose(gaussian_nll(mean, covariance, labels, 0.3), exact)


# ---------------------------------------------------------------- a rule of one's own


def test_a_rule_is_any_object_with_one_method():
    class ByKind:
        def choose(self, fit):
            from posthoc_bhpeft.selection import PriorChoice

            names = fit.evidence.spectra
            return PriorChoice({name: 2.0 + len(name) for name in names}, "By length.")

    model = mlp(3, 4, 2)
    bayes = bayesianize(model, pairs((4, 3), 2), prior=ByKind(), progress=False)
    assert bayes.reason == "By length."
    for block in discover(model):
        assert bayes.posterior.prior.precision[block.name] == 2.0 + len(block.name)


@pytest.mark.parametrize("outside", [True, False])
def test_a_rule_that_fails_leaves_the_model_and_autograd_as_they_were(outside):
    """While the exception is held, as a notebook does, and after it is gone."""
    model, data = mlp(4, 3).float().train(), pairs((5, 4), 2)
    data = [(x.float(), torch.ones(5, 3)) for x, _ in data]
    rule, held = HeldOut(data, link=LaplaceBridge()), []

    def left():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return model.training, hooks, torch.is_grad_enabled()

    with torch.set_grad_enabled(outside):
        try:
            bayesianize(model, data, likelihood=Bernoulli(), prior=rule, progress=False)
        except ConfigError as error:
            held.append(error)
    assert len(held) == 1
    assert left() == (True, 0, True)
    held.clear()
    gc.collect()
    assert left() == (True, 0, True)
