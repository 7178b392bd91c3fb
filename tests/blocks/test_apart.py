"""Rows that a model mixes: refused at the first batch that can tell, in a fit and afterwards."""

import pytest
import torch
from peft import LNTuningConfig, LoraConfig
from torch import nn

from posthoc_bhpeft.api import bayesianize
from posthoc_bhpeft.blocks import CheckedTape, apart, discover, observing
from posthoc_bhpeft.errors import ModelError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.predictive import Linearized
from posthoc_bhpeft.predictive.spectrum import covariance_spectra
from posthoc_bhpeft.selection import FixedPrecision
from tests.contracts import any_direction, observations
from tests.hybrid.families import tiny_batch, tiny_model
from tests.models import mlp, pairs, posterior_of, wrap

ONE_ROW, TWO_ROWS = pairs((1, 3), 3, batches=3), pairs((2, 3), 3)


class OnceABatch(nn.Module):
    """A layer that runs on a table of positions, once for the whole batch, as in DeBERTa."""

    def __init__(self):
        super().__init__()
        self.body, self.table, self.head = mlp(3, 4), mlp(4, 4), mlp(4, 3)
        self.register_buffer("positions", torch.eye(4, dtype=torch.float64))

    def forward(self, x):
        return self.head(self.body(x).tanh() @ self.table(self.positions))


def fitted(loader):
    return posterior_of(OnceABatch(), loader)


def predict(posterior, batch):
    return Linearized().predict(OnceABatch(), posterior, Categorical(), batch[0])


def test_a_fit_looks_at_its_first_batch_of_several_rows():
    assert fitted(ONE_ROW).n_rows == 3
    for loader in (TWO_ROWS, [*ONE_ROW, *TWO_ROWS]):
        with pytest.raises(ModelError, match=r"'table.*called once for the whole batch"):
            fitted(loader)


def test_a_prediction_looks_where_the_fit_could_not():
    posterior = fitted(ONE_ROW)
    assert len(predict(posterior, ONE_ROW[0]).probabilities) == 1
    for _ in range(2):  # a refusal is not taken for a look
        with pytest.raises(ModelError, match=r"'table.*called once for the whole batch"):
            predict(posterior, TWO_ROWS[0])
    assert len(predict(posterior, ONE_ROW[1]).probabilities) == 1


def test_so_does_the_choice_of_a_prior():
    posterior, model = fitted(ONE_ROW), OnceABatch()

    def spectra(loader):
        given = (model, posterior.blocks, posterior.bases, Categorical(), loader)
        return list(covariance_spectra(*given))

    assert len(spectra(ONE_ROW)) == 3
    with pytest.raises(ModelError, match="called once for the whole batch"):
        spectra([*ONE_ROW, *TWO_ROWS])


@pytest.mark.parametrize(("loader", "first"), [(ONE_ROW, 3), (TWO_ROWS, 2)])
def test_only_the_first_such_batch_costs_a_pass(loader, first, monkeypatch):
    """Of a model, whatever is predicted with it afterwards; none where its fit could look."""
    passes = []
    kept = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or kept(*a, **k))
    model = mlp(3, 4, 3)
    posterior = posterior_of(model, loader)

    def cost(x):
        passes.clear()
        Linearized().predict(model, posterior, Categorical(), x)
        return len(passes)

    batches = [*ONE_ROW[:1], *TWO_ROWS, *TWO_ROWS]
    assert [cost(x) for x, _ in batches] == [2, first, 2, 2, 2]


@pytest.mark.parametrize(("again", "looks"), [(False, 1), (True, 2)])
def test_a_model_is_looked_at_once_unless_asked_again(again, looks, monkeypatch):
    model, found = mlp(3, 4, 3), []
    blocks = discover(model)
    monkeypatch.setattr(apart, "check_rows_apart", lambda tape, outputs: found.append(len(outputs)))
    for _ in range(2):
        with observing(model, blocks) as tape:
            checked = CheckedTape(tape, model, blocks, again=again)
            for x, _ in (ONE_ROW[0], TWO_ROWS[0], TWO_ROWS[0]):
                checked.look(model(x))
    assert found == [2] * looks


def test_other_blocks_of_a_model_are_looked_at():
    model = OnceABatch()
    model.table.requires_grad_(False)
    posterior_of(model, TWO_ROWS)
    model.table.requires_grad_(True)
    posterior = posterior_of(model, ONE_ROW)
    with pytest.raises(ModelError, match="called once for the whole batch"):
        Linearized().predict(model, posterior, Categorical(), TWO_ROWS[0][0])


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_the_layer_norm_over_the_relative_positions_of_deberta():
    base = tiny_model("deberta_v2", norm_rel_ebd="layer_norm")
    config = LNTuningConfig(target_modules=["encoder.LayerNorm"])
    model = wrap(base, config)
    batch = tiny_batch(model, rows=4, padding=False)
    rows = [{name: tensor[n : n + 1] for name, tensor in batch.items()} for n in range(4)]
    bayes = bayesianize(model, rows, prior=FixedPrecision(2.0), progress=False)
    assert bayes.predict(rows[0]).covariance is not None
    with pytest.raises(ModelError, match=r"encoder\.LayerNorm.*called once for the whole batch"):
        bayes.predict(batch)


@pytest.mark.parametrize("target", ["query_proj", "key_proj"])
def test_a_projection_that_also_serves_positions_is_refused_by_name_with_the_way_out(target):
    base = tiny_model("deberta_v2", share_att_key=True)
    model = wrap(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=[target]))
    batch = tiny_batch(model)
    words = rf"Block '.*{target}.*once for the whole batch.*query_proj and key_proj.*value_proj"
    with pytest.raises(ModelError, match=words):
        observations(model, discover(model), batch, any_direction(model, batch))
