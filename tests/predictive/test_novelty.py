"""Novelty against dense leverage, and that it tells what is new."""

from dataclasses import replace

import pytest
import torch

from posthoc_bhpeft.blocks import Kind, discover
from posthoc_bhpeft.curvature import DenseGGN, KroneckerGGN
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import Linearized, LogOdds, MonteCarlo, Sampled
from posthoc_bhpeft.predictive.novelty import last_layer, layer_number, unit_information
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, linear, lora, mlp, pairs, posterior_of, targets
from tests.oracles import jacobian, relative_error


def dense_novelty(model, posterior, batch, directions):
    """`sqrt(tr(A^T J (H + d I)^-1 J^T A))` over the last layer, from dense matrices."""
    blocks = last_layer(posterior.blocks)
    curvature = {block.name: posterior.curvature[block.name].dense() for block in blocks}
    trace, size = sum(float(h.trace()) for h in curvature.values()), sum(b.size for b in blocks)
    unit, total = trace / (posterior.n_rows * size), 0
    for name, jac in jacobian(model, blocks, batch).items():
        seen = directions.mT @ jac.flatten(2)
        inverse = torch.linalg.inv(
            curvature[name] + unit * torch.eye(len(curvature[name])).double()
        )
        total = total + torch.einsum("nmp,pq,nmq->n", seen, inverse, seen)
    return total.sqrt()


def of(model, posterior, inputs, likelihood=Categorical(), predictive=Linearized()):
    return predictive.predict(model, posterior, likelihood, inputs).novelty


# ---------------------------------------------------------------- against the formula


def test_of_linear_regression_it_is_the_leverage():
    noise = 0.4
    inputs, labels = targets((9, 3), 1, batches=1)[0]
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    posterior = posterior_of(model, [(inputs, labels)], likelihood=Gaussian(noise))
    gram = inputs.T @ inputs / noise
    unit = float(gram.trace()) / (9 * 3)
    inverse = torch.linalg.inv(gram + unit * torch.eye(3).double())
    exact = torch.einsum("ni,ij,nj->n", inputs, inverse, inputs).sqrt()
    assert relative_error(of(model, posterior, inputs, Gaussian(noise)), exact) < 1e-9


@pytest.mark.parametrize("structure", [DenseGGN(), KroneckerGGN()], ids=repr)
@pytest.mark.parametrize("max_passes", [3, 1], ids=["all contrasts", "one direction"])
def test_of_a_classifier_it_is_the_log_odds_under_the_unit_information_prior(structure, max_passes):
    model = hybrid(bottleneck_size=2)
    posterior = posterior_of(model, tiny_loader(model), curvature=structure)
    batch = tiny_batch(model, rows=3, seed=7, labels=False)
    found = of(model, posterior, batch, predictive=Linearized(max_passes=max_passes))
    direction = LogOdds().direction(model(**batch).logits.detach())
    exact = dense_novelty(model, posterior, batch, direction.unsqueeze(-1))
    assert relative_error(found, exact) < 1e-7


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Bernoulli()], ids=repr)
def test_of_several_outputs_it_is_their_total_variance(likelihood):
    model, loader = mlp(3, 4, 2), [(x, y.sigmoid().round()) for x, y in targets((6, 3), 2)]
    posterior = posterior_of(model, loader, likelihood=likelihood)
    identity = torch.eye(2).double().expand(6, -1, -1)
    exact = dense_novelty(model, posterior, loader[0], identity)
    assert relative_error(of(model, posterior, loader[0][0], likelihood), exact) < 1e-9


def test_a_link_that_needs_all_contrasts_gets_their_total_variance():
    model = hybrid(bottleneck_size=2)
    posterior = posterior_of(model, tiny_loader(model))
    batch = tiny_batch(model, rows=3, seed=7, labels=False)
    found = of(model, posterior, batch, predictive=Linearized(MonteCarlo(8), centred=False))
    contrasts = Categorical().contrasts(3).double().expand(3, -1, -1)
    assert relative_error(found, dense_novelty(model, posterior, batch, contrasts)) < 1e-7


# ---------------------------------------------------------------- what it says


def test_what_no_row_had_is_new():
    inputs, labels = pairs((40, 4), 3, batches=1)[0]
    inputs[:, 3] = 0
    model = linear(4, 3)
    posterior = posterior_of(model, [(inputs, labels)], precision=1e4)
    strange = inputs.clone()
    strange[:, 3] = 1
    seen, new = (
        Linearized().predict(model, posterior, Categorical(), x) for x in (inputs, strange)
    )
    assert float(new.novelty.min()) > 2 * float(seen.novelty.max())
    # Under a strong prior the epistemic uncertainty does not tell them apart that well.
    assert float(new.epistemic.min()) < float(seen.epistemic.max())


def test_the_prior_has_no_say():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    other = posterior.with_prior(GaussianPrior(dict.fromkeys(posterior.prior.precision, 900.0)))
    one, two = (of(model, p, loader[0][0]) for p in (posterior, other))
    assert torch.allclose(one, two, rtol=1e-12)


def test_where_nothing_is_known_all_is_finite():
    model, loader = linear(3, 3), [(torch.zeros(4, 3).double(), torch.tensor([0, 1, 2, 0]))]
    posterior = posterior_of(model, loader)
    found = of(model, posterior, torch.ones(2, 3).double())
    assert bool(found.isfinite().all())
    assert bool((found > 0).all())


def test_samples_have_none():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    prediction = Sampled(4).predict(model, posterior, Categorical(), loader[0][0])
    assert prediction.novelty is None
    assert "novelty" not in prediction.uncertainties


# ---------------------------------------------------------------- the last layer


def test_the_head_is_the_last_layer():
    blocks = discover(hybrid(bottleneck_size=2))
    assert {block.kind for block in last_layer(blocks)} == {Kind.HEAD}


def test_without_a_head_it_is_the_layer_of_the_highest_number():
    model = lora()
    blocks = [block for block in discover(model) if block.kind is not Kind.HEAD]
    found = last_layer(blocks)
    highest = max(layer_number(block) for block in blocks)
    assert highest == model.config.num_hidden_layers - 1
    assert {layer_number(block) for block in found} == {highest}
    assert 0 < len(found) < len(blocks)


def test_names_without_a_number_are_one_layer():
    block = discover(linear(3, 3))[0]
    unnumbered = [replace(block, name="body.first2"), replace(block, name="body.second")]
    assert list(map(layer_number, unnumbered)) == [-1, -1]
    assert len(last_layer([replace(b, kind=Kind.OTHER) for b in unnumbered])) == 2


def test_unit_information_is_never_below_rounding():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    blocks = last_layer(posterior.blocks)
    largest = max(float(posterior.bases[b.name].eigenvalues.max()) for b in blocks)
    many = replace(posterior, n_rows=10**12)
    assert unit_information(many, blocks) == pytest.approx(largest * 2.0**-23)
