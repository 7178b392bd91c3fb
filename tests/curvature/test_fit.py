"""One pass over the data: what is summed, what is left out, what is refused."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from peft import LoHaConfig

from posthoc_bhpeft.blocks import discover, observing
from posthoc_bhpeft.curvature import KFAC, DenseGGN, DiagonalGGN, KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError, NonFiniteError
from posthoc_bhpeft.likelihood import Categorical, Gaussian
from tests.hybrid.families import tiny_batch, tiny_model
from tests.models import mlp, pairs, seeded, targets, wrap
from tests.oracles import dense_ggn, outputs_of


def fit(model, loader, estimator=None, likelihood=None, **kwargs):
    return fit_curvature(
        model,
        discover(model),
        loader,
        likelihood or Categorical(),
        estimator or KroneckerGGN(),
        generator=seeded(),
        **kwargs,
    )


def test_log_likelihood_rows_and_outputs():
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    fitted = fit(model, loader)
    exact = sum(model(x).log_softmax(-1).gather(1, y[:, None]).sum().item() for x, y in loader)
    assert fitted.log_likelihood == pytest.approx(exact, rel=1e-12)
    assert (fitted.n_rows, fitted.n_outputs) == (10, 3)


def test_rows_of_regression_count_once_whatever_their_number_of_outputs():
    fitted = fit(mlp(3, 4, 2), targets((5, 3), 2), likelihood=Gaussian())
    assert (fitted.n_rows, fitted.n_outputs) == (10, 2)


@pytest.mark.parametrize(
    "estimator", [KroneckerGGN(), DiagonalGGN(), DenseGGN(), KFAC(), KFAC(reduce=True)], ids=repr
)
def test_rows_without_a_label_change_nothing(estimator):
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    extra = torch.randn(4, 3, generator=seeded(9), dtype=torch.float64)
    without = torch.full((4,), -100)
    more = [(torch.cat([extra, x]), torch.cat([without, y])) for x, y in loader]
    more.append((extra, without))
    plain, masked = fit(model, loader, estimator), fit(model, more, estimator)
    assert masked.n_rows == plain.n_rows
    assert masked.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-12)
    for name, operator in plain.operators.items():
        assert torch.allclose(masked.operators[name].dense(), operator.dense()), name


@contextmanager
def unfactored(model, blocks):
    """An engine that knows gradients but not the two sides they are made of."""

    class UnfactoredTape:
        def observe(self, outputs, direction, see, **kwargs):
            def see_gradient(block, seen):
                see(block, replace(seen, factored=False))

            tape.observe(outputs, direction, see_gradient, **kwargs)

    with observing(model, blocks) as tape:
        yield UnfactoredTape()


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, -100, 2]])
def test_kfac_refuses_an_engine_that_does_not_know_the_sides(labels):
    loader = [(torch.ones(3, 3).double(), torch.tensor(labels))]
    assert fit(mlp(3, 4, 3), loader, KroneckerGGN(), engine=unfactored).operators
    with pytest.raises(ConfigError, match=r"KFAC.*KroneckerGGN"):
        fit(mlp(3, 4, 3), loader, KFAC(), engine=unfactored)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_kfac_refuses_a_layer_without_sides_however_often_it_is_called(family):
    config = LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = wrap(tiny_model(family), config)
    with pytest.raises(ConfigError, match=r"KFAC.*KroneckerGGN"):
        fit(model, [tiny_batch(model)], KFAC())


class BatchCentred(torch.nn.Module):
    """Subtracts a mean over the batch, as batch normalisation in training does."""

    def __init__(self):
        super().__init__()
        self.body, self.head = mlp(3, 4), mlp(4, 3)

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden - hidden.mean(0))


class PositionsFirst(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = mlp(3, 4), mlp(4, 3)

    def forward(self, x):
        return self.head(self.body(x.transpose(0, 1)).tanh().mean(0))


def test_a_model_that_mixes_rows_is_refused_by_the_name_of_the_block():
    with pytest.raises(ModelError, match=r"'body\.0\.weight'.*one row depend.*other rows"):
        fit(BatchCentred(), pairs((4, 3), 3))


def test_positions_first_are_told_from_rows_first_where_there_are_as_many():
    """Eight rows of four positions, in batches of which sizes tell, or not, or not at first."""
    inputs = torch.randn(8, 4, 3, generator=seeded(0), dtype=torch.float64)
    labels = torch.randint(3, (8,), generator=seeded(1))

    def of(*sizes):
        return list(zip(inputs.split(sizes), labels.split(sizes), strict=True))

    expected = fit(PositionsFirst(), of(5, 3)).operators
    for sizes in ((4, 4), (3, 4, 1), (2, 2, 2, 2), (1,) * 8):
        for name, operator in fit(PositionsFirst(), of(*sizes)).operators.items():
            assert torch.allclose(operator.dense(), expected[name].dense(), rtol=1e-10)


def test_a_row_alone_cannot_mix():
    assert fit(BatchCentred(), pairs((1, 3), 3)).n_rows == 2


def test_dropout_is_off_during_the_fit():
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    noisy = torch.nn.Sequential(model, torch.nn.Dropout(0.5)).train()
    plain, other = fit(model, loader).operators, fit(noisy, loader).operators
    for name, operator in plain.items():
        assert torch.equal(other[f"0.{name}"].dense(), operator.dense())


def test_float32_is_close_to_float64():
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    single = [(x.float(), y) for x, y in loader]
    for name, operator in fit(model.float(), single, DenseGGN()).operators.items():
        assert torch.allclose(operator.dense().double(), exact[name], rtol=1e-3, atol=1e-5)


def test_a_batch_without_labels_is_refused():
    with pytest.raises(DataError, match="without labels"):
        fit(mlp(3, 2), [torch.ones(4, 3).double()])


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match="out of range"):
        fit(mlp(3, 2), pairs((20, 3), 5))


def test_a_label_of_minus_one_is_refused_rather_than_left_out():
    (inputs, labels), _ = pairs((4, 3), 3)
    labels[2] = -1
    with pytest.raises(DataError, match="Label -1 in row 2"):
        fit(mlp(3, 4, 3), [(inputs, labels)])


def test_nan_weights_are_named():
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'2\.bias'"):
        fit(model, pairs((4, 3), 2))


def test_gradients_that_overflow_are_refused_with_the_name_of_the_block():
    model = mlp(3, 4, 2)
    loader = [(torch.full((4, 3), 1e200, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))]
    with torch.no_grad():
        model[0].weight.mul_(1e-200)
    with pytest.raises(NonFiniteError, match=r"'0\.weight' is NaN or infinite"):
        fit(model, loader)


def test_progress_sees_every_batch():
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    loader = pairs((4, 3), 2, batches=3)
    fit(mlp(3, 2), loader, progress=progress)
    assert len(seen) == 3


def test_the_oracle_is_the_hessian_where_the_model_is_linear():
    """The dense oracle itself, against the full Hessian of the loss by autograd."""
    model, (batch, *_) = mlp(3, 3), pairs((6, 3), 3)
    inputs, labels = batch
    ggn = dense_ggn(model, discover(model), [batch], Categorical())

    def loss(weight):
        outputs = outputs_of(model, inputs, {"0.weight": weight})
        return Categorical().nll(outputs, labels).sum()

    hessian = torch.func.hessian(loss)(model[0].weight.detach())
    assert torch.allclose(ggn["0.weight"], hessian.reshape(9, 9))
