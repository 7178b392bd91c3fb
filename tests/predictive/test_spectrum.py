"""Covariances at every prior precision from one pass, against the exact one at each."""

import pytest
import torch

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import KroneckerGGN
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood import Categorical, Gaussian
from posthoc_bhpeft.linalg import IdentityEigenbasis
from posthoc_bhpeft.predictive import Linearized, Probit
from posthoc_bhpeft.predictive.energies import EigenvalueBins, EnergySum
from posthoc_bhpeft.predictive.spectrum import covariance_spectra
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_loader
from tests.models import hybrid, mlp, pairs, posterior_of, seeded, targets
from tests.oracles import relative_error


def spectra_of(model, loader, posterior, likelihood=None):
    return list(
        covariance_spectra(
            model, posterior.blocks, posterior.bases, likelihood or Categorical(), iter(loader)
        )
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("precision", [1e-4, 1e-2, 1.0, 1e2, 1e6])
def test_any_precision_is_within_one_percent_of_the_exact_covariance(family, precision):
    model = hybrid(family)
    loader = tiny_loader(model)
    posterior = posterior_of(model, loader, curvature=KroneckerGGN())
    prior = GaussianPrior.isotropic(posterior.blocks, precision)
    for spectrum, batch in zip(spectra_of(model, loader, posterior), loader, strict=True):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        exact = Linearized(Probit()).predict(
            model, posterior.with_prior(prior), Categorical(), inputs
        )
        assert relative_error(spectrum.at(precision), exact.covariance) < 0.01
        assert torch.equal(spectrum.labels, batch["labels"])
        assert torch.allclose(spectrum.outputs, exact.logits)


def test_at_another_noise_it_is_the_covariance_of_a_fit_at_that_noise():
    model, loader = mlp(3, 4, 2), targets((8, 3), 2)
    unit = posterior_of(model, loader, likelihood=Gaussian(1.0))
    noisy = posterior_of(model, loader, likelihood=Gaussian(0.05), precision=0.7)
    (spectrum, _) = spectra_of(model, loader, unit, Gaussian(1.0))
    exact = Linearized().predict(model, noisy, Gaussian(0.05), loader[0][0])
    assert relative_error(spectrum.at(0.7, 0.05), exact.covariance) < 0.05
    assert relative_error(spectrum.at(0.7), exact.covariance) > 0.3


def test_rows_without_a_label_are_left_out():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    inputs, labels = loader[0]
    masked = labels.clone()
    masked[[1, 4]] = -100
    (whole,) = spectra_of(model, [(inputs, labels)], posterior)
    (some,) = spectra_of(model, [(inputs, masked)], posterior)
    kept = [0, 2, 3, 5]
    assert torch.equal(some.labels, labels[kept])
    assert torch.allclose(some.at(2.0), whole.at(2.0)[kept])


def test_a_batch_without_labels_is_refused():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    with pytest.raises(DataError, match="without labels"):
        spectra_of(model, [loader[0][0]], posterior)


def test_a_search_that_stops_early_leaves_no_hook():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    model.train()
    stream = covariance_spectra(
        model, posterior.blocks, posterior.bases, Categorical(), iter(loader)
    )
    next(stream)
    stream.close()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


# ---------------------------------------------------------------- bins


def test_every_eigenvalue_lies_in_the_bin_around_it():
    values = torch.logspace(-11, 3, 500, dtype=torch.float64)
    bins = EigenvalueBins.over({"w": IdentityEigenbasis(values)})
    centres = bins.centres[bins.assign(values)]
    inside = centres > 0
    ratio = centres[inside] / values[inside]
    width = float(bins.edges[1] / bins.edges[0]) ** 0.5 * (1 + 1e-9)
    assert bool((ratio < width).all())
    assert bool((ratio > 1 / width).all())
    # What is twelve decades below the largest counts as zero.
    assert bool((values[~inside] < 1e-9).all())


@pytest.mark.parametrize("values", [[0.0, 0.0], [2.0, 2.0], [0.0, 5.0]])
def test_degenerate_spectra_have_bins_too(values):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    bins = EigenvalueBins.over({"w": IdentityEigenbasis(eigenvalues)})
    assert torch.allclose(bins.centres[bins.assign(eigenvalues)], eigenvalues, rtol=1e-5)


@pytest.mark.parametrize("answers", [1, 3])
def test_energies_are_the_outer_products_summed_by_bin(answers):
    jacobian = torch.randn(4, answers, 3, 10, generator=seeded(), dtype=torch.float64)
    member = torch.randint(0, 5, (10,), generator=seeded(1))
    sums = EnergySum.empty(member, 5, jacobian, answers, 3)
    for index in range(3 * answers):
        # Blocks come in any order, the same for every direction.
        for place in (slice(7, 10), slice(0, 7)):
            sums.add(index, place, jacobian.flatten(1, 2)[:, index, place])
    energies, rows = sums.total(), jacobian.flatten(0, 1)
    for index in range(5):
        part = rows[:, :, member == index]
        assert torch.allclose(energies[index], part @ part.transpose(1, 2))


def test_millions_of_weights_in_one_bin_lose_nothing_to_rounding():
    sums = EnergySum.empty(torch.zeros(4 * 10**6, dtype=torch.int32), 3, torch.zeros(1, 2), 1, 1)
    generator, exact = seeded(0), 0.0
    for start in range(0, 4 * 10**6, 10**6):
        coordinates = torch.randn(1, 10**6, generator=generator)
        sums.add(0, slice(start, start + 10**6), coordinates)
        exact += float(coordinates.double().square().sum())
    assert float(sums.total()[0]) == pytest.approx(exact, rel=1e-4)


def test_bins_lose_no_energy():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    (spectrum, _) = spectra_of(model, loader, posterior)
    # With an enormous precision the eigenvalues do not matter: V = J J^T / d.
    prior = GaussianPrior.isotropic(discover(model), 1e10)
    exact = Linearized().predict(model, posterior.with_prior(prior), Categorical(), loader[0][0])
    assert relative_error(spectrum.at(1e10), exact.covariance) < 1e-6
