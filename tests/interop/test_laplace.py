"""laplace-torch both ways: the same evidence and predictive, and a model left as it was."""

import math
import re
from pathlib import Path

import pytest
import torch
from laplace import DiagLaplace, FullLaplace, KronLaplace, Laplace
from torch import nn

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import Kind, discover
from posthoc_bhpeft.curvature import KFAC, DenseGGN, DiagonalGGN, KroneckerGGN, RandomSigns
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.interop.laplace import (
    KroneckerSums,
    LaplaceLoader,
    LaplaceModel,
    PerSampleGGN,
    to_laplace,
)
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian
from posthoc_bhpeft.predictive import Linearized, MonteCarlo, Probit
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection import FixedPrecision, Grouping, MarginalLikelihood
from tests.hybrid.families import tiny_batch, tiny_loader
from tests.models import hybrid, lora, mlp, pairs, prefix, targets

GLM = Linearized(Probit(), centred=False)
BUILDS = {
    "hybrid bert": hybrid,
    "hybrid llama": lambda: hybrid("llama"),
    "peft lora": lora,
    "peft prefix": prefix,
}
built = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def fitted(model, loader, *, precision=3.0, structure="kron", backend=PerSampleGGN, **kwargs):
    """laplace-torch's own object, fitted by laplace-torch."""
    la = Laplace(
        LaplaceModel(model),
        kwargs.pop("likelihood", "classification"),
        subset_of_weights="all",
        hessian_structure=structure,
        prior_precision=precision,
        backend=backend,
        **kwargs,
    )
    la.fit(LaplaceLoader(loader))
    return la


def bayes_of(model, loader, **settings):
    settings.setdefault("prior", FixedPrecision(3.0))
    return bayesianize(model, loader, progress=False, **settings)


# ------------------------------------------ our curvature in laplace-torch


@built
def test_as_a_backend_it_gives_our_evidence_and_predictive(build):
    model = build()
    loader = tiny_loader(model)
    bayes, la = bayes_of(model, loader), fitted(model, loader)
    assert isinstance(la, KronLaplace)
    assert float(la.log_marginal_likelihood()) == pytest.approx(
        bayes.log_marginal_likelihood(), rel=1e-9
    )
    batch = tiny_batch(model, seed=7)
    torch.testing.assert_close(la(batch), bayes.predict(batch, GLM).probabilities)


def test_its_posterior_precision_is_ours_whatever_the_batches():
    model = hybrid()
    loader = tiny_loader(model, batches=3)
    posterior = bayes_of(model, loader).posterior
    la = fitted(model, loader)
    ours = torch.block_diag(
        *[
            posterior.curvature[b.name].dense() + 3.0 * torch.eye(b.size, dtype=torch.float64)
            for b in posterior.blocks
        ]
    )
    torch.testing.assert_close(la.posterior_precision.to_matrix(), ours)


def test_regression():
    model = mlp(3, 4, 2)
    loader = targets((6, 3), 2)
    bayes = bayes_of(model, loader, likelihood=Gaussian(0.25))
    la = fitted(model, loader, likelihood="regression", sigma_noise=0.5)
    assert float(la.log_marginal_likelihood()) == pytest.approx(bayes.log_marginal_likelihood())
    mean, variance = la(loader[0][0])
    prediction = bayes.predict(loader[0])
    torch.testing.assert_close(mean, prediction.logits)
    torch.testing.assert_close(variance, prediction.covariance)


def test_tuning_the_prior_by_evidence_finds_our_optimum():
    model = hybrid()
    loader = tiny_loader(model, batches=4)
    la = fitted(model, loader)
    la.optimize_prior_precision(method="marglik", n_steps=400, lr=0.1)
    bayes = bayes_of(model, loader, prior=MarginalLikelihood())
    ours = bayes.posterior.prior.precision[bayes.blocks[0].name]
    assert float(la.prior_precision) == pytest.approx(ours, rel=1e-2)
    assert float(la.log_marginal_likelihood()) == pytest.approx(
        bayes.log_marginal_likelihood(), rel=1e-5
    )


def test_sampling_predictive_and_state_dict_work_on_a_hybrid():
    model = hybrid()
    loader = tiny_loader(model)
    batch = loader[0]
    la = fitted(model, loader)
    torch.manual_seed(0)
    drawn = la(batch, pred_type="nn", link_approx="mc", n_samples=20)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(4, dtype=torch.float64))
    other = Laplace(LaplaceModel(model), "classification", "all", "kron", backend=PerSampleGGN)
    other.load_state_dict(la.state_dict())
    torch.testing.assert_close(other(batch), la(batch))
    assert float(other.log_marginal_likelihood()) == pytest.approx(
        float(la.log_marginal_likelihood())
    )


def test_a_second_fit_replaces_and_override_false_continues():
    model = hybrid()
    loader = tiny_loader(model, batches=4)
    whole = fitted(model, loader)
    again = fitted(model, loader)
    again.fit(LaplaceLoader(loader))
    half = fitted(model, loader[:2])
    half.fit(LaplaceLoader(loader[2:]), override=False)
    for other in (again, half):
        torch.testing.assert_close(
            other.posterior_precision.to_matrix(), whole.posterior_precision.to_matrix()
        )
        assert float(other.log_likelihood) == pytest.approx(float(whole.log_likelihood))


def test_a_loaded_one_cannot_continue_since_its_factors_are_normalised():
    model = hybrid()
    loader = tiny_loader(model)
    la = fitted(model, loader)
    la.load_state_dict(la.state_dict())
    with pytest.raises(ConfigError, match="override=True"):
        la.fit(LaplaceLoader(loader), override=False)


def test_random_signs_of_a_seed():
    model = hybrid()
    loader = tiny_loader(model)
    kwargs = {"backend_kwargs": {"directions": RandomSigns(), "seed": 3}}
    bayes = bayes_of(
        model,
        loader,
        curvature=KroneckerGGN(RandomSigns()),
        generator=torch.Generator().manual_seed(3),
    )
    assert float(fitted(model, loader, **kwargs).log_marginal_likelihood()) == pytest.approx(
        bayes.log_marginal_likelihood()
    )


# ------------------------------------------ against laplace-torch's own numbers


def test_full_ggn_on_plain_lora_is_that_of_its_own_backend():
    model = lora(r=1)
    model.set_attn_implementation("eager")  # its matrix products need forward-mode derivatives
    loader = tiny_loader(model, padding=False)
    mine = fitted(model, loader, structure="full")
    own = fitted(model, loader, structure="full", backend=None)
    assert isinstance(mine, FullLaplace)
    torch.testing.assert_close(mine.H, own.H)
    assert float(mine.log_marginal_likelihood()) == pytest.approx(
        float(own.log_marginal_likelihood())
    )
    torch.testing.assert_close(mine(loader[0]), own(loader[0]))


def test_kron_on_one_datum_and_one_layer_is_that_of_its_own_backend():
    # One row, no shared weights: K-FAC and the per-sample factors are both exact.
    layer = nn.Linear(4, 3).double()
    loader = pairs((1, 4), 3, batches=1)
    own = Laplace(layer, "classification", "all", "kron", prior_precision=3.0)
    own.fit(LaplaceLoader(loader))
    mine = fitted(layer, loader)
    assert float(mine.log_marginal_likelihood()) == pytest.approx(
        float(own.log_marginal_likelihood())
    )
    torch.testing.assert_close(mine(loader[0][0]), own(loader[0][0]))


class Logits(nn.Module):
    """What a user of laplace-torch writes around a transformers model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch["input_ids"], batch["attention_mask"]).logits


def test_kron_on_plain_lora_is_that_of_its_own_backend_where_both_are_exact():
    # One row of one token: each gradient is an outer product with the same input.
    model = lora()
    batch = tiny_batch(model, rows=1, positions=1, padding=False)
    own = Laplace(Logits(model), "classification", "all", "kron", prior_precision=3.0)
    own.fit(LaplaceLoader([batch]))
    bayes = bayes_of(model, [batch])
    for mine in (fitted(model, [batch]), to_laplace(bayes)):
        assert float(mine.log_marginal_likelihood()) == pytest.approx(
            float(own.log_marginal_likelihood())
        )
        torch.testing.assert_close(mine(batch), own_probit(own, model, batch), rtol=1e-6, atol=1e-9)


def own_probit(own, model, batch):
    """laplace-torch's GLM predictive, its Jacobian taken row by row of the outputs."""
    outputs = own.model(batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(f, trained, retain_graph=True) for f in outputs[0]]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    variance = own.functional_variance(jacobian[None]).diagonal(dim1=1, dim2=2)
    return (outputs.detach() / torch.sqrt(1 + math.pi / 8 * variance)).softmax(-1)


def test_diag_ggn_is_the_diagonal_of_our_diagonal_curvature():
    model = hybrid()
    loader = tiny_loader(model)
    la = fitted(model, loader, structure="diag")
    posterior = bayes_of(model, loader, curvature=DiagonalGGN()).posterior
    ours = torch.cat(
        [posterior.curvature[b.name].tensors()["diagonal"].flatten() for b in posterior.blocks]
    )
    assert isinstance(la, DiagLaplace)
    torch.testing.assert_close(la.H, ours)


# ------------------------------------------ a fit of ours as theirs


@built
@pytest.mark.parametrize(
    "rule", [FixedPrecision(2.0), MarginalLikelihood(Grouping.BLOCK)], ids=["one", "a block"]
)
def test_to_laplace_has_the_same_evidence_and_predictive(build, rule):
    model = build()
    loader = tiny_loader(model)
    bayes = bayes_of(model, loader, prior=rule)
    la = to_laplace(bayes)
    assert float(la.log_marginal_likelihood()) == pytest.approx(
        bayes.log_marginal_likelihood(), rel=1e-9
    )
    batch = tiny_batch(model, seed=7)
    prediction = bayes.predict(batch, GLM)
    torch.testing.assert_close(la(batch), prediction.probabilities)
    _, covariance = la._glm_predictive_distribution(batch)
    torch.testing.assert_close(covariance, prediction.covariance)


def test_monte_carlo_agrees_within_its_standard_error():
    model = hybrid()
    bayes = bayes_of(model, tiny_loader(model), prior=FixedPrecision(0.5))
    batch = tiny_batch(model, seed=7)
    torch.manual_seed(0)
    theirs = to_laplace(bayes)(batch, link_approx="mc", n_samples=20_000)
    ours = bayes.predict(batch, Linearized(MonteCarlo(20_000), centred=False)).probabilities
    assert (theirs - ours).abs().max() < 5 * 0.5 * math.sqrt(2 / 20_000)


def test_to_laplace_of_kfac_and_of_regression_with_learnt_noise():
    model = hybrid()
    bayes = bayes_of(model, tiny_loader(model), curvature=KFAC())
    assert float(to_laplace(bayes).log_marginal_likelihood()) == pytest.approx(
        bayes.log_marginal_likelihood()
    )
    body, loader = mlp(3, 4, 2), targets((6, 3), 2)
    bayes = bayes_of(body, loader, likelihood=Gaussian())
    la = to_laplace(bayes)
    assert float(la.log_marginal_likelihood()) == pytest.approx(bayes.log_marginal_likelihood())
    torch.testing.assert_close(la(loader[0][0])[1], bayes.predict(loader[0]).covariance)


def test_a_prior_mean_goes_along():
    model = hybrid()
    bayes = bayes_of(model, tiny_loader(model))
    first, second, *_ = bayes.blocks
    mean = {second.name: bayes.posterior.mean[second.name] * 0.5}
    precision = {block.name: 2.0 for block in bayes.blocks} | {first.name: 5.0}
    posterior = bayes.posterior.with_prior(GaussianPrior(precision, mean))
    moved = type(bayes)(
        model, posterior, bayes.likelihood, bayes.predictive, bayes.curvature, bayes.reason
    )
    assert float(to_laplace(moved).log_marginal_likelihood()) == pytest.approx(
        moved.log_marginal_likelihood()
    )


def test_more_data_can_be_added_to_one_of_ours():
    model = hybrid()
    loader = tiny_loader(model, batches=4)
    la = to_laplace(bayes_of(model, loader[:2]))
    la.fit(LaplaceLoader(loader[2:]), override=False)
    assert float(la.log_marginal_likelihood()) == pytest.approx(
        bayes_of(model, loader).log_marginal_likelihood()
    )


@pytest.mark.parametrize("estimator", [DenseGGN(), DiagonalGGN()], ids=["dense", "diagonal"])
def test_what_kron_laplace_cannot_hold_is_refused(estimator):
    model = mlp(3, 2)
    bayes = bayes_of(model, pairs((5, 3), 2), curvature=estimator)
    with pytest.raises(ConfigError, match=r"Operator.*KroneckerGGN"):
        to_laplace(bayes)


def test_a_prior_that_carries_curvature_is_refused():
    model, loader = mlp(3, 2), pairs((5, 3), 2)
    chained = bayes_of(model, loader, prior=bayes_of(model, loader).as_prior())
    with pytest.raises(ConfigError, match="carries curvature from earlier data"):
        to_laplace(chained)


def test_multi_label_is_refused():
    model = mlp(3, 2)
    loader = [(x, y.abs().clamp_max(1)) for x, y in targets((5, 3), 2)]
    with pytest.raises(ConfigError, match="Bernoulli"):
        to_laplace(bayes_of(model, loader, likelihood=Bernoulli()))


# ------------------------------------------ the view, the loader, the traps


def state_of(model):
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def test_the_users_model_is_not_touched():
    model = hybrid().train()
    before = state_of(model)
    loader = tiny_loader(model)
    la = fitted(model, loader)
    la(loader[0])
    la(loader[0], pred_type="nn", link_approx="mc", n_samples=2)
    after = state_of(model)
    weights = before.pop("weights"), after.pop("weights")
    assert after == before
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_the_parameters_of_the_view_are_the_blocks():
    model = hybrid()
    view = LaplaceModel(model)
    assert [tuple(p.shape) for p in view.parameters()] == [b.shape for b in discover(model)]
    assert any(b.kind is Kind.PREFIX for b in view.blocks)
    batch = tiny_batch(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    assert torch.equal(view(batch), model(**inputs).logits)


def test_the_view_runs_at_its_own_weights():
    model = hybrid()
    view, batch = LaplaceModel(model), tiny_batch(model)
    with torch.no_grad():
        at_model = view(batch)
        view.matrices[0].add_(1.0)
        assert not torch.allclose(view(batch), at_model)
    assert torch.equal(LaplaceModel(model)(batch), at_model)


def test_the_loader_counts_labelled_rows_and_drops_the_others():
    model = hybrid()
    loader = tiny_loader(model)
    holes = [dict(batch, labels=batch["labels"].clone()) for batch in loader]
    holes[0]["labels"][1] = -100
    holes.append(dict(loader[0], labels=torch.full((4,), -100)))
    wrapped = LaplaceLoader(holes)
    assert len(wrapped.dataset) == 7
    assert [len(batch["labels"]) for batch in wrapped] == [3, 4]
    la = fitted(model, holes)
    bayes = bayes_of(model, holes)
    assert float(la.log_marginal_likelihood()) == pytest.approx(bayes.log_marginal_likelihood())


def test_a_loader_without_labels_is_refused():
    batch = tiny_batch(hybrid(), labels=False)
    with pytest.raises(DataError, match="labels"):
        LaplaceLoader([batch])


def test_a_model_that_is_no_view_is_refused():
    model = nn.Linear(4, 3).double()
    la = Laplace(model, "classification", "all", "kron", backend=PerSampleGGN)
    with pytest.raises(ConfigError, match="LaplaceModel"):
        la.fit(LaplaceLoader(pairs((5, 4), 3)))


def test_half_precision_weights_are_seen_in_float32():
    # laplace-torch itself leaves the process here: its eigendecomposition of bfloat16 calls exit().
    model = lora().bfloat16()
    la = fitted(model, tiny_loader(model))
    assert la.mean.dtype == torch.float32
    assert math.isfinite(float(la.log_marginal_likelihood()))


def test_infinite_factors_raise_instead_of_leaving_the_process():
    broken = KroneckerSums([(torch.tensor([[math.inf]]), torch.eye(1))])
    with pytest.raises(NonFiniteError):
        broken.decompose()


# ------------------------------------------ the page of the documentation


def test_the_lines_of_the_documentation_run_and_agree():
    page = (Path(__file__).resolve().parents[2] / "docs" / "laplace-torch.md").read_text()
    model = hybrid()
    loader = tiny_loader(model)
    names = {"model": model, "loader": loader, "batch": loader[0]}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, names)
    torch.testing.assert_close(names["ours"], names["theirs"])
