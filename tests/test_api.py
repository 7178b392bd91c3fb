"""The one call on every kind of input that people have: the same posterior, the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    Bernoulli,
    Exact,
    FixedPrecision,
    Gaussian,
    HeldOut,
    Kind,
    KroneckerGGN,
    Linearized,
    MarginalLikelihood,
    MonteCarlo,
    Sampled,
    bayesianize,
)
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.progress import track
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.models import hybrid, mlp, pairs, seeded, targets
from tests.tuned import assert_same, fitted, numbers, tuned

QUIET: dict[str, Any] = {"progress": False, "prior": FixedPrecision(2.0)}


def curvature_of(bayes: BayesianPeft) -> dict[str, Tensor]:
    return {
        f"{name}/{part}": tensor
        for name, operator in bayes.posterior.curvature.items()
        for part, tensor in operator.tensors().items()
    }


def assert_close(one: BayesianPeft, other: BayesianPeft, tolerance: float = 1e-10) -> None:
    """Equal up to the order of sums."""
    first, second = curvature_of(one), curvature_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        scale = float(tensor.abs().max()) + 1e-300
        assert float((tensor - second[name]).abs().max()) <= tolerance * scale, name
    assert one.posterior.n_rows == other.posterior.n_rows
    assert one.posterior.log_likelihood == pytest.approx(other.posterior.log_likelihood, rel=1e-9)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return hybrid()


@pytest.fixture(scope="module")
def reference(model: nn.Module) -> BayesianPeft:
    return bayesianize(model, tiny_loader(model), **QUIET)


def as_pairs(batches: list[dict[str, Tensor]]) -> list[Any]:
    return [({k: v for k, v in b.items() if k != "labels"}, b["labels"]) for b in batches]


def as_rows(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{k: v[i] for k, v in b.items()} for b in batches for i in range(len(b["labels"]))]


FORMS: dict[str, Callable[[list[dict[str, Tensor]]], Any]] = {
    "BatchEncoding": lambda batches: [BatchEncoding(batch) for batch in batches],
    "pairs": as_pairs,
    "a tuple": tuple,
    "DataLoader": lambda batches: DataLoader(as_rows(batches), batch_size=4),
    "DataLoader, shuffled": lambda batches: DataLoader(
        as_rows(batches), batch_size=4, shuffle=True, generator=seeded(7)
    ),
    "DataLoader, ragged last batch": lambda batches: DataLoader(as_rows(batches), batch_size=3),
    "DataLoader, one row a batch": lambda batches: DataLoader(as_rows(batches), batch_size=1),
    "labels called label": lambda batches: [
        {**{k: v for k, v in b.items() if k != "labels"}, "label": b["labels"]} for b in batches
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_posterior_from_every_form_of_data(
    form: str, model: nn.Module, reference: BayesianPeft
) -> None:
    loader = FORMS[form](tiny_loader(model))
    assert_close(bayesianize(model, loader, **QUIET), reference)


def test_ignored_rows_count_nowhere(model: nn.Module, reference: BayesianPeft) -> None:
    batches = tiny_loader(model)
    more = tiny_batch(model, seed=9)
    both = {name: torch.cat([batches[0][name], more[name]]) for name in more}
    both["labels"][4:] = -100
    marked = {**more, "labels": torch.full((4,), -100)}
    bayes = bayesianize(model, [both, marked, batches[1]], **QUIET)
    assert_close(bayes, reference)
    assert bayes.posterior.n_rows == 8


def test_dropout_and_training_mode_do_not_matter(reference: BayesianPeft) -> None:
    model = hybrid(lora_dropout=0.3, adapter_dropout=0.3, prefix_dropout=0.3)
    model.train()
    bayes = bayesianize(model, tiny_loader(model), **QUIET)
    assert_close(bayes, reference)
    batch = tiny_batch(model)
    assert torch.equal(bayes.predict(batch).probabilities, bayes.predict(batch).probabilities)
    assert model.training


def test_a_notebook_shows_it_in_a_few_lines(reference: BayesianPeft) -> None:
    shown = repr(reference)
    assert shown.startswith(f"BayesianPeft({type(reference.model).__name__}, Posterior(")
    assert f"{len(reference.blocks)} blocks" in shown
    assert "8 rows" in shown
    assert repr(reference.predictive) in shown
    assert len(shown) < 400


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("predictive", [Linearized(), Sampled(2), MAP()], ids=repr)
def test_the_model_is_left_as_it_was(training: bool, predictive: Any) -> None:
    model = hybrid()
    model.train(training)
    model.base_model.model.classifier.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    state = copy.deepcopy(model.state_dict())
    before = facts(model)
    bayes = bayesianize(model, tiny_loader(model), **QUIET)
    bayes.predict(tiny_batch(model), predictive)
    assert facts(model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in trained)


def facts(model: nn.Module) -> list[Any]:
    """What else a call could change: modes, hooks, requires_grad."""
    modules = [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    return [*modules, *[(name, p.requires_grad) for name, p in model.named_parameters()]]


def test_no_global_randomness(model: nn.Module) -> None:
    state = torch.get_rng_state()
    bayes = bayesianize(model, tiny_loader(model), progress=False)
    bayes.predict(tiny_batch(model), Linearized(MonteCarlo(8)))
    bayes.sample(2, seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_compiled_in_place_runs_eagerly(reference: BayesianPeft) -> None:
    compilations: list[str] = []
    # Code that other tests had compiled often enough is not compiled again.
    torch.compiler.reset()

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(str(graph))
        return graph.forward

    # Hooks and weights to swap would be compiled anew at every layer and draw.
    compiled = copy.deepcopy(reference.model)
    compiled.compile(backend=backend)
    loader = tiny_loader(compiled)
    bayes = bayesianize(compiled, loader, **QUIET)
    assert_close(bayes, reference)
    batch = next(iter(loader))
    for predictive in (Linearized(), Sampled(2), MAP()):
        one, other = (at.predict(batch, predictive) for at in (bayes, reference))
        torch.testing.assert_close(one.probabilities, other.probabilities)
    assert not compilations
    compiled(**batch)
    assert compilations


def test_a_call_in_no_grad_is_the_same(model: nn.Module, reference: BayesianPeft) -> None:
    with torch.no_grad():
        assert_close(bayesianize(model, tiny_loader(model), **QUIET), reference)


def test_predict_loader_is_predict_side_by_side(reference: BayesianPeft) -> None:
    loader = tiny_loader(reference.model, 3)
    together = reference.predict_loader(loader, progress=False)
    assert len(together) == 12
    assert torch.equal(together.labels, torch.cat([batch["labels"] for batch in loader]))
    for index, batch in enumerate(loader):
        alone = reference.predict(batch)
        assert torch.equal(alone.probabilities, together.probabilities[4 * index : 4 * index + 4])


def test_predict_loader_takes_a_generator_without_labels(reference: BayesianPeft) -> None:
    batches = ({**tiny_batch(reference.model), "labels": None} for _ in range(2))
    prediction = reference.predict_loader(batches, progress=False)
    assert len(prediction) == 8
    assert prediction.labels is None


def test_a_predictive_for_one_call(reference: BayesianPeft) -> None:
    prediction = reference.predict(tiny_batch(reference.model), MAP())
    assert prediction.covariance is None
    assert torch.equal(prediction.probabilities, prediction.logits.softmax(-1))


def test_samples_have_the_shape_of_the_blocks(reference: BayesianPeft) -> None:
    drawn = reference.sample(3, seeded(0))
    assert {name: tuple(t.shape) for name, t in drawn.items()} == {
        block.name: (3, *block.shape) for block in reference.blocks
    }


def test_explain_says_what_and_why(reference: BayesianPeft) -> None:
    text = reference.explain()
    for part in ("lora", "adapter", "prefix", "head", "8 rows", "KroneckerGGN", "as given"):
        assert part in text


def test_only_a_head_of_a_plain_transformers_model() -> None:
    model = tiny_model("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    bayes = bayesianize(model, tiny_loader(model), **QUIET)
    assert [block.kind for block in bayes.blocks] == [Kind.HEAD, Kind.HEAD]
    assert float(bayes.predict(tiny_batch(model)).epistemic.min()) > 0


def test_a_bfloat16_base_with_float32_adapters() -> None:
    wide = tuned(dtype=torch.float32).float()
    narrow = copy.deepcopy(wide)
    for parameter in narrow.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    narrow.base_model.model.classifier.modules_to_save.to(torch.bfloat16)
    bayes = bayesianize(narrow, tiny_loader(narrow), **QUIET)
    expected = bayesianize(wide, tiny_loader(wide), **QUIET)
    batch = tiny_batch(wide)
    assert all(t.dtype == torch.float32 for t in curvature_of(bayes).values())
    assert torch.allclose(
        bayes.predict(batch).probabilities, expected.predict(batch).probabilities, atol=0.05
    )


def test_regression_recovers_the_noise() -> None:
    generator = seeded(0)
    inputs = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    noise = 0.3 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    labels = inputs @ weights + noise
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.linalg.lstsq(inputs, labels).solution.T.contiguous()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=50)
    bayes = bayesianize(
        model, loader, likelihood=Gaussian(), prior=MarginalLikelihood(), progress=False
    )
    assert isinstance(bayes.likelihood, Gaussian)
    # 0.09 within three standard errors of a variance from 400 residuals.
    assert bayes.likelihood.noise_variance == pytest.approx(0.09, abs=3 * 0.09 * (2 / 400) ** 0.5)
    prediction = bayes.predict((inputs[:5], labels[:5]))
    assert prediction.probabilities is None
    assert torch.equal(prediction.predicted, prediction.logits)


def test_given_noise_is_kept() -> None:
    bayes = bayesianize(mlp(4, 1), targets((6, 4), 1), likelihood=Gaussian(0.5), progress=False)
    assert bayes.likelihood == Gaussian(0.5)


def test_learnt_noise_is_the_posterior_at_that_noise() -> None:
    model, loader = mlp(4, 2), targets((6, 4), 2)
    learnt = bayesianize(model, loader, likelihood=Gaussian(), **QUIET)
    given = bayesianize(model, loader, likelihood=learnt.likelihood, **QUIET)
    assert learnt.log_marginal_likelihood() == pytest.approx(given.log_marginal_likelihood())
    one, other = learnt.predict(loader[0]), given.predict(loader[0])
    assert torch.allclose(one.covariance, other.covariance)


def test_multi_label() -> None:
    model, inputs = mlp(4, 3), torch.randn(8, 4, generator=seeded(1), dtype=torch.float64)
    answers = torch.randint(0, 2, (8, 3), generator=seeded(2))
    bayes = bayesianize(model, [(inputs, answers)], likelihood=Bernoulli(), progress=False)
    prediction = bayes.predict((inputs, answers))
    assert prediction.predicted.shape == (8, 3)
    assert set(prediction.predicted.unique().tolist()) <= {0, 1}
    assert torch.allclose(prediction.total, prediction.aleatoric + prediction.epistemic)


def test_held_out_rows_are_never_worse_off() -> None:
    model, loader = mlp(4, 3), pairs((30, 4), 3, seed=1)
    held_out = pairs((30, 4), 3, seed=2)
    bayes = bayesianize(model, loader, prior=HeldOut(held_out), progress=False)

    def nll(prediction: Any) -> float:
        chosen = prediction.probabilities.gather(1, prediction.labels[:, None])
        return -float(chosen.log().mean())

    fitted_nll = nll(bayes.predict_loader(held_out, progress=False))
    assert fitted_nll <= nll(bayes.predict_loader(held_out, MAP(), progress=False)) + 1e-9


def test_a_given_prior_is_taken_as_it_is_and_changes_nothing() -> None:
    model = hybrid()
    first = bayesianize(model, tiny_loader(model), **QUIET)
    prior, state = first.as_prior(), copy.deepcopy(model.state_dict())
    bayes = bayesianize(model, [tiny_batch(model, seed=5)], prior=prior, progress=False)
    assert bayes.posterior.prior == prior
    assert bayes.posterior.n_rows == 4
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    prior.penalty(model).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        block.parameter for block in first.blocks
    }


def test_an_isotropic_prior_is_what_a_fixed_precision_gives(reference: BayesianPeft) -> None:
    prior = GaussianPrior.isotropic(reference.blocks, 2.0)
    bayes = bayesianize(reference.model, tiny_loader(reference.model), prior=prior, progress=False)
    assert_close(bayes, reference)
    assert bayes.log_marginal_likelihood() == reference.log_marginal_likelihood()
    assert "as given" in bayes.explain()


def test_random_signs_take_the_generator() -> None:
    model, loader = mlp(4, 5), pairs((6, 4), 5)
    draws = [bayesianize(model, loader, generator=seeded(s), **QUIET) for s in (0, 0, 1)]
    assert_close(draws[0], draws[1], 0.0)
    with pytest.raises(AssertionError):
        assert_close(draws[0], draws[2], 1e-3)


def test_the_curvature_may_be_chosen() -> None:
    model, loader = mlp(4, 3), pairs((6, 4), 3)
    chosen = KroneckerGGN(Exact())
    bayes = bayesianize(model, loader, curvature=chosen, **QUIET)
    assert bayes.curvature == chosen
    assert_close(bayes, bayesianize(model, loader, **QUIET))


def test_two_calls_agree_to_the_last_bit() -> None:
    assert_same(numbers(fitted()), numbers(fitted()))


def test_progress_is_silent_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "Count", 2, show=False)) == [1, 2]
    assert list(track([1, 2], "Count", 2, show=True)) == [1, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_may_be_on_another_device_than_the_model() -> None:
    model = hybrid().cuda()
    bayes = bayesianize(model, tiny_loader(model), **QUIET)
    assert bayes.predict(tiny_batch(model)).probabilities.is_cuda
