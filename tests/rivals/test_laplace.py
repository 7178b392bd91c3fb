"""Last-layer and diagonal Laplace against dense matrices worked out without laplace-torch."""

import math

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import LogOdds
from posthoc_bhpeft.rivals import fit_diagonal, fit_last_layer, laplace_torch
from posthoc_bhpeft.rivals.last_layer import last_blocks
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.models import hybrid, lora, mlp, pairs, targets
from tests.oracles import dense_ggn, jacobian

QUIET = {"progress": False}


def probit(mean: Tensor, covariance: Tensor) -> Tensor:
    variance = covariance.diagonal(dim1=1, dim2=2)
    return (mean / torch.sqrt(1 + math.pi / 8 * variance)).softmax(-1)


class LastLayer:
    """The head of an `mlp` by hand: outputs `[W b] [h; 1]`, Jacobian `I (x) [h; 1]`."""

    def __init__(self, model: nn.Sequential, loader, noise: float | None = None) -> None:
        self.body, self.head, self.noise = model[:-1], model[-1], noise
        self.weights = torch.cat([self.head.weight, self.head.bias[:, None]], 1).detach().flatten()
        self.ggn = torch.zeros(len(self.weights), len(self.weights), dtype=torch.float64)
        self.log_likelihood = 0.0
        for x, y in loader:
            jac, outputs = self.jacobian(x), model(x).detach()
            p = outputs.softmax(-1)
            hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            if noise is not None:
                hessian = torch.eye(outputs.shape[1]).double().expand_as(hessian) / noise
                self.log_likelihood -= float(Gaussian(noise).nll(outputs, y).sum())
            else:
                self.log_likelihood -= float(nn.functional.cross_entropy(outputs, y) * len(y))
            self.ggn += torch.einsum("ncP,nck,nkQ->PQ", jac, hessian, jac)

    def jacobian(self, x: Tensor) -> Tensor:
        features = torch.cat([self.body(x), torch.ones(len(x), 1).double()], 1).detach()
        identity = torch.eye(self.head.out_features).double()
        return torch.einsum("ck,nd->nckd", identity, features).flatten(2)

    def covariance(self, x: Tensor, precision: float) -> Tensor:
        jac = self.jacobian(x)
        whole = self.ggn + precision * torch.eye(len(self.ggn)).double()
        return jac @ torch.linalg.inv(whole) @ jac.transpose(1, 2)

    def evidence(self, precision: float) -> float:
        eigenvalues = torch.linalg.eigvalsh(self.ggn).clamp_min(0)
        determinant = torch.log1p(eigenvalues / precision).sum()
        return self.log_likelihood - 0.5 * float(
            precision * self.weights.square().sum() + determinant
        )


def test_last_layer_is_the_dense_one():
    model, loader = mlp(3, 4, 3), pairs((12, 3), 3, batches=3)
    found, oracle = fit_last_layer(model, loader, **QUIET), LastLayer(model, loader)
    x = pairs((5, 3), 3, seed=9)[0][0]
    prediction = found.predict(x)
    covariance = oracle.covariance(x, found.precision)
    torch.testing.assert_close(prediction.covariance, covariance)
    torch.testing.assert_close(prediction.logits, model(x).detach())
    torch.testing.assert_close(prediction.probabilities, probit(model(x).detach(), covariance))
    assert found.n_weights == 15
    assert type(found.posterior).__name__ == "FullLaplace"
    torch.testing.assert_close(
        prediction.total, torch.special.entr(prediction.probabilities).sum(-1)
    )
    torch.testing.assert_close(prediction.aleatoric + prediction.epistemic, prediction.total)
    assert bool((prediction.epistemic > 0).all())


def test_its_prior_precision_has_the_highest_evidence():
    model, loader = mlp(3, 4, 3), pairs((12, 3), 3, batches=3)
    found, oracle = fit_last_layer(model, loader, **QUIET), LastLayer(model, loader)
    assert float(found.posterior.log_marginal_likelihood()) == pytest.approx(
        oracle.evidence(found.precision)
    )
    best = oracle.evidence(found.precision)
    assert best > oracle.evidence(found.precision * 1.01)
    assert best > oracle.evidence(found.precision / 1.01)


def test_last_layer_of_a_regression():
    model, loader = mlp(3, 4, 2), targets((12, 3), 2)
    found = fit_last_layer(model, loader, likelihood=Gaussian(0.25), **QUIET)
    oracle, x = LastLayer(model, loader, 0.25), loader[0][0]
    prediction = found.predict(x)
    covariance = oracle.covariance(x, found.precision)
    torch.testing.assert_close(prediction.covariance, covariance)
    assert prediction.probabilities is None
    identity = torch.eye(2).double()
    expected = 0.5 * torch.logdet(covariance / 0.25 + identity)
    torch.testing.assert_close(prediction.epistemic, expected)
    assert float(found.posterior.log_marginal_likelihood()) == pytest.approx(
        oracle.evidence(found.precision)
    )


def test_a_regression_takes_one_whole_number_a_row():
    model = mlp(3, 4, 1)
    loader = [(x, y[:, 0].round().long()) for x, y in targets((12, 3), 1)]
    columns = [(x, y.double()[:, None]) for x, y in loader]
    one, other = (fit_diagonal(model, d, likelihood=Gaussian(), **QUIET) for d in (loader, columns))
    assert one.precision == pytest.approx(other.precision)
    assert float(one.posterior.loss) == pytest.approx(float(other.posterior.loss))


@pytest.mark.parametrize("build", [hybrid, lora])
def test_diagonal_is_the_dense_diagonal_linearised(build):
    model = build()
    loader = tiny_loader(model, batches=3)
    found = fit_diagonal(model, loader, **QUIET)
    blocks = discover(model)
    ggn = dense_ggn(model, blocks, loader, Categorical())
    batch = tiny_batch(model, seed=7)
    expected = sum(
        torch.einsum("ncP,P,nkP->nck", j.flatten(2), 1 / (h + found.precision), j.flatten(2))
        for j, h in zip(
            jacobian(model, blocks, batch).values(),
            [ggn[block.name].diagonal() for block in blocks],
            strict=True,
        )
    )
    prediction = found.predict_loader([batch], **QUIET)
    torch.testing.assert_close(prediction.covariance, expected)
    torch.testing.assert_close(
        prediction.probabilities, probit(prediction.logits, prediction.covariance)
    )
    batch.pop("labels")
    torch.testing.assert_close(
        prediction.probabilities, found.posterior(batch, link_approx="probit")
    )
    assert found.n_weights == sum(block.size for block in blocks)
    assert "DiagLaplace" in found.describe()
    assert "12 training rows" in found.describe()


def test_rows_taken_one_at_a_time_give_the_same(monkeypatch):
    model = hybrid()
    loader = tiny_loader(model, batches=3)
    together = fit_diagonal(model, loader, **QUIET)
    monkeypatch.setattr(laplace_torch, "JACOBIAN_BYTES", 1)
    apart = fit_diagonal(model, loader, **QUIET)
    assert (together.rows_at_once > 4, apart.rows_at_once) == (True, 1)
    assert apart.posterior.n_data == together.posterior.n_data == 12
    one, other = (fit.predict_loader(loader, **QUIET) for fit in (together, apart))
    torch.testing.assert_close(one.probabilities, other.probabilities)
    torch.testing.assert_close(one.covariance, other.covariance)
    assert torch.equal(one.labels, other.labels)


def test_tensors_are_taken_in_pieces_too(monkeypatch):
    model, loader = mlp(3, 4, 3), pairs((7, 3), 3)
    together = fit_last_layer(model, loader, **QUIET).predict_loader(loader, **QUIET)
    monkeypatch.setattr(laplace_torch, "JACOBIAN_BYTES", 2 * 3 * 15 * 8)
    apart = fit_last_layer(model, loader, **QUIET)
    assert apart.rows_at_once == 2
    found = apart.predict_loader(loader, **QUIET)
    torch.testing.assert_close(found.probabilities, together.probabilities)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_every_structure_of_a_head_and_another_link(structure):
    model, loader = mlp(3, 4, 3), pairs((12, 3), 3)
    found = fit_last_layer(model, loader, structure=structure, **QUIET)
    assert type(found.posterior).__name__.lower().startswith(structure)
    sharper = found.with_link(LogOdds()).predict_loader(loader, **QUIET)
    assert torch.equal(sharper.predicted, sharper.logits.argmax(-1))
    assert not torch.equal(sharper.probabilities, found.predict(loader[0][0]).probabilities)


def test_a_large_head_gets_kronecker_factors(monkeypatch):
    monkeypatch.setattr("posthoc_bhpeft.rivals.last_layer.DENSE_UP_TO", 14)
    found = fit_last_layer(mlp(3, 4, 3), pairs((12, 3), 3), **QUIET)
    assert type(found.posterior).__name__ == "KronLaplace"


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "classifier"), ("roberta", "out_proj"), ("llama", "score"), ("bart", "out_proj")],
)
def test_the_last_layer_is_found_frozen_or_not(family, head):
    model = tiny_model(family).requires_grad_(False)
    blocks = last_blocks(model, tiny_batch(model))
    assert blocks[0].module.endswith(head)
    assert blocks[0].shape[0] == 3
    loader = tiny_loader(model)
    found = fit_last_layer(model, loader, **QUIET).predict_loader(loader, **QUIET)
    assert bool((found.epistemic > 0).all())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_of_a_hybrid_it_takes_the_copy_that_was_trained():
    model = hybrid()
    blocks = last_blocks(model, tiny_batch(model))
    assert all("modules_to_save.default" in block.module for block in blocks)
    assert dict(model.named_parameters())[blocks[0].parameter].requires_grad


def test_a_model_is_left_as_it_was():
    model = hybrid().train()
    trainable = [p.requires_grad for p in model.parameters()]
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    loader = tiny_loader(model)
    for fit in (fit_last_layer, fit_diagonal):
        fit(model, loader, **QUIET).predict_loader(loader, **QUIET)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == trainable


def test_what_comes_after_the_last_layer_is_refused():
    model = nn.Sequential(*mlp(3, 4, 3), nn.Tanh()).eval()
    with pytest.raises(ModelError, match=r"the last one is '2'.*Use fit_diagonal"):
        fit_last_layer(model, pairs((6, 3), 3), **QUIET)


@pytest.mark.parametrize("fit", [fit_last_layer, fit_diagonal])
def test_errors(fit):
    loader = [(x, nn.functional.one_hot(y, 3).double()) for x, y in pairs((6, 3), 3)]
    with pytest.raises(ConfigError, match=r"no counterpart of Bernoulli"):
        fit(mlp(3, 3), loader, likelihood=Bernoulli(), **QUIET)
    with pytest.raises(DataError, match="no batch at all"):
        fit(mlp(3, 3), [], **QUIET)
