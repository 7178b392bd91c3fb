"""Which axis rows are on, where there are as many rows as positions, or as a window is long."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification

from posthoc_bhpeft import FixedPrecision, bayesianize
from posthoc_bhpeft.blocks import discover, observing
from posthoc_bhpeft.blocks.layout import rows_are_second, rows_seen_second
from posthoc_bhpeft.errors import ModelError
from tests.models import lora, mlp, randomize, seeded
from tests.oracles import relative_error


class Windows(torch.nn.Module):
    """Rows folded with windows: what is tapped sees `(N k, w, d)`."""

    def __init__(self, width):
        super().__init__()
        self.body, self.head, self.width = mlp(3, 4), mlp(4, 3), width

    def forward(self, x):
        folded = x.reshape(-1, self.width, x.shape[-1])
        return self.head(self.body(folded).tanh().reshape(len(x), -1, 4).mean(1))


class Checkpointed(torch.nn.Module):
    """A part that is computed again while gradients go back, in evaluation too."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args, **kwargs):
        return checkpoint(self.inside, *args, use_reentrant=False, **kwargs)


def gradients(model, inputs):
    """Per-sample gradients of the first output, by block."""
    blocks, found = discover(model), {}
    with observing(model, blocks) as tape:
        outputs = model(inputs)
        direction = torch.zeros_like(outputs)
        direction[:, 0] = 1
        tape.observe(outputs, direction, lambda b, seen: found.update({b.name: seen.gradient()}))
    return found


def one_by_one(model, inputs):
    """The same, a row at a time."""
    rows = [gradients(model, inputs[n : n + 1]) for n in range(len(inputs))]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("rows", [2, 3, 4, 6])
def test_windows_as_many_as_rows_are_no_positions_first(rows):
    model = Windows(width=3)
    inputs = torch.randn(rows, 6, 3, generator=seeded(0), dtype=torch.float64)
    found, expected = gradients(model, inputs), one_by_one(model, inputs)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name]), name


@pytest.fixture(scope="module")
def xlnet():
    """Positions first, all the way up."""
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=32, num_labels=2, dropout=0.0
    )
    peft = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["layer_1"])
    model = get_peft_model(XLNetForSequenceClassification(config).double(), peft)
    return randomize(model, 0.3).eval()


def batches(size, n_rows=12, length=6):
    ids = torch.randint(5, 50, (n_rows, length), generator=seeded(0))
    labels = torch.randint(2, (n_rows,), generator=seeded(1))
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    parts = {name: tensor.split(size) for name, tensor in whole.items()}
    return [dict(zip(parts, some, strict=True)) for some in zip(*parts.values(), strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_xlnet_is_fitted_and_predicts_the_same_in_batches_of_any_size(xlnet, size):
    """Of six positions: sizes tell in batches of four, not in those of two, three and six."""
    prior = FixedPrecision(1.0)
    expected = bayesianize(xlnet, batches(4), prior=prior, progress=False)
    found = bayesianize(xlnet, batches(size), prior=prior, progress=False)
    assert found.log_marginal_likelihood() == pytest.approx(expected.log_marginal_likelihood())
    mine = found.predict_loader(batches(size), progress=False)
    theirs = expected.predict_loader(batches(4), progress=False)
    assert relative_error(mine.covariance, theirs.covariance) < 1e-6


@pytest.mark.parametrize(
    ("shape", "n_rows", "told"),
    [
        ((4, 7, 5), 4, False),
        ((7, 4, 5), 4, True),
        ((4, 4, 5), 4, None),
        ((8, 4, 5), 4, None),
        ((8, 5, 5), 4, False),
        ((4, 4), 4, False),
        ((1, 1, 5), 1, False),
        ((2, 2, 3, 3), 2, False),
    ],
)
def test_what_sizes_tell(shape, n_rows, told):
    assert rows_are_second(shape, n_rows) is told


def test_what_the_gradient_of_one_row_tells():
    first, second, both, mixed = torch.zeros(4, 3, 3, 5).unbind()
    first[1], second[:, 1], both[1, 1], mixed[0], mixed[1] = 1.0, 1.0, 1.0, 1.0, 1.0
    assert rows_seen_second(first, 1, 3, 3) is False
    assert rows_seen_second(second, 1, 3, 3) is True
    assert rows_seen_second(both, 1, 3, 3) is None
    assert rows_seen_second(0 * first, 1, 3, 3) is None
    with pytest.raises(ModelError, match="no gradient a row"):
        rows_seen_second(mixed, 1, 3, 3)


def test_texts_of_a_row_lie_side_by_side():
    """Two texts a row, three rows, six positions."""
    second = torch.zeros(6, 6, 5)
    second[:, 2:4] = 1
    assert rows_seen_second(second, 1, 3, 6) is True
    assert rows_seen_second(second.transpose(0, 1), 1, 3, 6) is False


def test_checkpoints_that_are_computed_again_are_taped_once():
    model, plain = lora(), lora()
    layers = model.base_model.model.bert.encoder.layer
    for place, layer in enumerate(layers):
        layers[place] = Checkpointed(layer)
    # Words of the same weights, behind a checkpoint or not.
    batch = batches(6, n_rows=6, length=7)[0]
    batch["input_ids"] = batch["input_ids"] % 40
    prior = FixedPrecision(1.0)
    found, expected = (bayesianize(m, [batch], prior=prior, progress=False) for m in (model, plain))
    assert found.log_marginal_likelihood() == pytest.approx(expected.log_marginal_likelihood())
    assert torch.allclose(found.predict(batch).epistemic, expected.predict(batch).epistemic)
