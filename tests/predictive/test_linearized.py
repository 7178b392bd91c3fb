"""The linearised predictive against dense `J Sigma J^T`, and how it treats a row in a batch."""

import pytest
import torch

from posthoc_bhpeft.blocks import discover, observing
from posthoc_bhpeft.curvature import DenseGGN, DiagonalGGN, KroneckerGGN
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import (
    Linearized,
    MonteCarlo,
    Probit,
    projected_jacobian,
)
from tests.contracts import check_prediction, check_predictive, rows_of, same_prediction
from tests.hybrid.families import single_rows, tiny_batch, tiny_loader
from tests.models import hybrid, mlp, pairs, posterior_of, targets
from tests.oracles import dense_output_covariance, jacobian, relative_error

STRUCTURES = [KroneckerGGN(), DiagonalGGN(), DenseGGN()]


def centring(n_outputs):
    return torch.eye(n_outputs, dtype=torch.float64) - 1 / n_outputs


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit()], ids=repr)
@pytest.mark.parametrize("centred", [True, False])
def test_the_contract(link, centred):
    check_predictive(Linearized(link, centred))


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit()], ids=repr)
def test_independent_answers(link):
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    loader = [(x, torch.nn.functional.one_hot(y, 3).double()) for x, y in loader]
    posterior = posterior_of(model, loader, likelihood=Bernoulli())
    prediction = Linearized(link).predict(model, posterior, Bernoulli(), loader[0][0])
    check_prediction(prediction, 6, 3)
    assert prediction.multilabel
    assert torch.equal(prediction.predicted, (prediction.probabilities > 0.5).long())
    variance = prediction.covariance.diagonal(dim1=1, dim2=2)
    assert torch.equal(prediction.probabilities, link.sigmoid(prediction.logits, variance))


# ---------------------------------------------------------------- the covariance


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
@pytest.mark.parametrize(("family", "tolerance"), [("bert", 1e-9), ("llama", 1e-5)])
def test_the_covariance_is_dense_j_sigma_j(structure, family, tolerance):
    model = hybrid(family, bottleneck_size=2)
    loader = tiny_loader(model)
    posterior = posterior_of(model, loader, curvature=structure, precision=3.0)
    batch = tiny_batch(model, rows=3, seed=7, labels=False)
    exact = dense_output_covariance(model, posterior, batch)
    whole = Linearized(Probit(), centred=False).predict(model, posterior, Categorical(), batch)
    assert relative_error(whole.covariance, exact) < tolerance
    centred = Linearized(Probit()).predict(model, posterior, Categorical(), batch)
    assert relative_error(centred.covariance, centring(3) @ exact @ centring(3)) < tolerance


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Bernoulli()], ids=repr)
def test_without_a_softmax_nothing_is_centred(likelihood):
    model, loader = mlp(3, 4, 2), [(x, y.sigmoid().round()) for x, y in targets((6, 3), 2)]
    posterior = posterior_of(model, loader, likelihood=likelihood)
    prediction = Linearized(Probit()).predict(model, posterior, likelihood, loader[0][0])
    assert (
        relative_error(prediction.covariance, dense_output_covariance(model, posterior, loader[0]))
        < 1e-10
    )


def test_linear_regression_is_the_closed_form():
    noise, d = 0.4, 1.5
    inputs, labels = targets((9, 3), 1, batches=1)[0]
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    posterior = posterior_of(model, [(inputs, labels)], precision=d, likelihood=Gaussian(noise))
    prediction = Linearized().predict(model, posterior, Gaussian(noise), inputs)
    covariance = torch.linalg.inv(d * torch.eye(3).double() + inputs.T @ inputs / noise)
    exact = torch.einsum("ni,ij,nj->n", inputs, covariance, inputs)
    assert torch.allclose(prediction.covariance[:, 0, 0], exact)


def test_logits_are_those_of_the_trained_model():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    prediction = Linearized().predict(model, posterior, Categorical(), loader[0][0])
    assert torch.equal(prediction.logits, model(loader[0][0]).detach())


@pytest.mark.parametrize("link", [MonteCarlo(2000), Probit()], ids=repr)
def test_centring_changes_no_more_than_the_link_does(link):
    model, loader = mlp(3, 4, 3), pairs((20, 3), 3)
    posterior = posterior_of(model, loader, precision=30.0)
    predict = [
        Linearized(link, centred).predict(model, posterior, Categorical(), loader[0][0])
        for centred in (True, False)
    ]
    difference = (predict[0].probabilities - predict[1].probabilities).abs().max()
    # A softmax does not see the common shift; the probit link, which looks at variances, does.
    assert difference < (0.02 if isinstance(link, MonteCarlo) else 0.2)


# ---------------------------------------------------------------- the projected Jacobian


def test_the_projected_jacobian_is_a_rotation_of_the_dense_one():
    model = hybrid(bottleneck_size=2)
    batch = tiny_batch(model, rows=3, labels=False)
    blocks = discover(model)
    posterior = posterior_of(model, tiny_loader(model), curvature=KroneckerGGN())
    with observing(model, blocks) as tape:
        outputs = model(**batch).logits
        projected = projected_jacobian(
            tape, blocks, posterior.bases, outputs, torch.eye(3).double().expand(3, -1, -1)
        )
    dense = jacobian(model, blocks, batch)
    start = 0
    for block in blocks:
        part = projected[:, :, start : start + block.size].unflatten(-1, block.shape)
        back = posterior.bases[block.name].unproject(part)
        assert relative_error(back, dense[block.name]) < 1e-9, block.name
        start += block.size
    assert start == projected.shape[-1]


# ---------------------------------------------------------------- a row and its batch


@pytest.mark.parametrize("link", [MonteCarlo(64), Probit()], ids=repr)
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-7),
        ({"gates": True}, 1e-7),
        ({"family": "albert"}, 1e-7),
        ({"family": "gpt2"}, 1e-7),
        # T5 takes square roots in float32, and variances here are up to hundreds.
        ({"family": "t5"}, 1e-4),
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_its_batch_nor_on_its_padding(settings, tolerance, link):
    model = hybrid(**settings)
    posterior = posterior_of(model, tiny_loader(model), curvature=KroneckerGGN())
    batch = tiny_batch(model, rows=4, seed=5, labels=False)
    together = Linearized(link).predict(model, posterior, Categorical(), batch)
    for row, alone in enumerate(single_rows(batch)):
        single = Linearized(link).predict(model, posterior, Categorical(), alone)
        same_prediction(rows_of(together, [row]), single, tolerance=tolerance)


def test_predictions_hold_no_graph_and_work_without_gradients():
    model, loader = mlp(3, 4, 3), pairs((6, 3), 3)
    posterior = posterior_of(model, loader)
    with torch.no_grad():
        prediction = Linearized().predict(model, posterior, Categorical(), loader[0][0])
    assert not prediction.covariance.requires_grad
    assert float(prediction.covariance.norm()) > 0


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_float32_is_close_to_float64(structure):
    model = hybrid()
    loader = tiny_loader(model)
    wide = posterior_of(model, loader, curvature=structure, precision=1.0)
    exact = Linearized().predict(model, wide, Categorical(), tiny_batch(model, labels=False))
    model.float()
    narrow = posterior_of(model, loader, curvature=structure, precision=1.0)
    single = Linearized().predict(model, narrow, Categorical(), tiny_batch(model, labels=False))
    assert single.covariance.dtype == torch.float32
    assert relative_error(single.covariance.double(), exact.covariance) < 1e-3
    assert torch.allclose(single.probabilities.double(), exact.probabilities, atol=1e-4)
    value = narrow.log_marginal_likelihood()
    assert value == pytest.approx(wide.log_marginal_likelihood(), rel=1e-4)
