"""MC dropout against every mask of a tiny net, and a model left exactly as it was."""

from itertools import product

import pytest
import torch
from torch import nn

from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.rivals import Dropout, Point
from posthoc_bhpeft.rivals.dropout import dropping, find_sites
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.models import hybrid, linear, pairs, targets

P = 0.4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def net(p: float = P) -> nn.Sequential:
    """Three units that are dropped, so eight masks."""
    body = linear(3, 3, bias=True)
    return nn.Sequential(body, nn.Tanh(), nn.Dropout(p), linear(3, 2, bias=True, seed=1)).eval()


def every_mask(model: nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(8, N, C)` and probabilities of the masks `(8,)`."""
    hidden, outputs, weights = torch.tanh(model[0](x)), [], []
    for mask in product([0.0, 1.0], repeat=3):
        kept = torch.tensor(mask, dtype=torch.float64)
        outputs.append(model[3](hidden * kept / (1 - P)))
        weights.append((1 - P) ** kept.sum() * P ** (3 - kept.sum()))
    return torch.stack(outputs).detach(), torch.stack(weights)


def mean_over(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("s...,s->...", values, weights)


def test_many_masks_come_to_the_mean_over_all_of_them():
    model, samples = net(), 20_000
    x = pairs((4, 3), 2)[0][0]
    logits, weights = every_mask(model, x)
    each = logits.softmax(-1)
    found = Dropout(model, samples=samples).predict(x)
    mean = mean_over(each, weights)
    spread = (mean_over(each**2, weights) - mean**2).sqrt()
    assert bool(((found.probabilities - mean).abs() < 4.5 * spread / samples**0.5).all())
    assert float(spread.min()) > 0.01
    total = torch.special.entr(mean).sum(-1)
    aleatoric = mean_over(torch.special.entr(each).sum(-1), weights)
    torch.testing.assert_close(found.total, total, rtol=0, atol=0.01)
    torch.testing.assert_close(found.aleatoric, aleatoric, rtol=0, atol=0.01)
    torch.testing.assert_close(found.epistemic, total - aleatoric, rtol=0, atol=0.005)
    centred = logits - mean_over(logits, weights)
    covariance = mean_over(torch.einsum("snc,snk->snck", centred, centred), weights)
    torch.testing.assert_close(found.covariance, covariance, rtol=0.06, atol=0.02)
    torch.testing.assert_close(found.logits, model(x).detach())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_with_probability_zero_it_is_the_network_exactly(family):
    model = hybrid(family)
    loader = tiny_loader(model)
    dropped = Dropout(model, samples=4, p=0.0).predict_loader(loader, progress=False)
    network = Point(model).predict_loader(loader, progress=False)
    assert torch.equal(dropped.logits, network.logits)
    torch.testing.assert_close(dropped.probabilities, network.probabilities, rtol=0, atol=1e-15)
    torch.testing.assert_close(dropped.total, network.total, rtol=0, atol=1e-14)
    assert float(dropped.epistemic.max()) < 1e-14
    assert torch.equal(dropped.labels, torch.cat([batch["labels"] for batch in loader]))


# -------------------------------------------------- what is switched on


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {**NO_DROPOUT, "attention_probs_dropout_prob": 0.3}),
        ("llama", {"attention_dropout": 0.3}),
        ("bart", {"dropout": 0.0, "attention_dropout": 0.3, "activation_dropout": 0.0}),
        ("t5", {"dropout_rate": 0.3}),
        ("gpt2", {"attn_pdrop": 0.3, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    ],
)
def test_dropout_inside_attention_is_switched_on(family, settings, attention):
    model = tiny_model(family, attention=attention, **settings)
    batch = tiny_batch(model)
    labels = batch.pop("labels")
    assert len(labels) == 4
    found = Dropout(model, samples=4).predict(batch)
    assert bool((found.epistemic > 0).all())
    one = Dropout(model, samples=4, p=1e-12).predict(batch)
    torch.testing.assert_close(one.probabilities, Point(model).predict(batch).probabilities)


def test_normalisation_stays_in_evaluation_mode():
    layers = [linear(3, 3), nn.BatchNorm1d(3).double(), nn.Dropout(P), linear(3, 2)]
    model = nn.Sequential(*layers).eval()
    x, before = torch.randn(5, 3, dtype=torch.float64), model[1].running_mean.clone()
    Dropout(model, samples=3).predict(x)
    assert torch.equal(model[1].running_mean, before)
    with dropping(model):
        assert [layer.training for layer in layers] == [False, False, True, False]


def test_identical_rows_get_masks_of_their_own():
    x = torch.ones(2, 3, dtype=torch.float64)
    found = Dropout(net(), samples=5).predict(x)
    assert not torch.equal(found.probabilities[0], found.probabilities[1])


def test_whole_layers_are_not_dropped_and_nothing_is_recomputed():
    model = tiny_model("opt", dropout=0.1, attention_dropout=0.0, layerdrop=0.999)
    model.gradient_checkpointing_enable()
    model.train()
    batch = tiny_batch(model)
    batch.pop("labels")
    kinder = tiny_model("opt", dropout=0.1, attention_dropout=0.0, layerdrop=0.0)
    found, expected = (Dropout(m, samples=4).predict(batch) for m in (model, kinder))
    torch.testing.assert_close(found.probabilities, expected.probabilities)
    assert model.model.decoder.layerdrop == 0.999
    assert model.is_gradient_checkpointing


# -------------------------------------------------------- left as it was


def snapshot(model):
    """Modes, numbers held as attributes, hooks and weights."""
    return {
        path: (
            module.training,
            {k: v for k, v in vars(module).items() if isinstance(v, int | float)},
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for path, module in model.named_modules()
    }


@pytest.mark.parametrize("training", [False, True])
def test_the_model_and_the_random_state_are_left_as_they_were(training):
    model = hybrid()
    model.train(training)
    model.get_submodule("base_model.model.bert.embeddings").train(not training)
    before = snapshot(model)
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    Dropout(model, samples=2, p=0.2).predict_loader(tiny_loader(model), progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert snapshot(model) == before
    assert all(torch.equal(weights[name], p) for name, p in model.state_dict().items())


def test_it_is_left_as_it_was_when_something_fails_inside():
    model = hybrid()
    before, state = snapshot(model), torch.get_rng_state()

    def fail():
        with dropping(model, 0.3):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert snapshot(model) == before
    with pytest.raises(DataError):
        Dropout(model).predict({"input_ids": torch.full((1, 3), 10_000)})
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------ seeds


def test_masks_come_from_the_seed_alone_and_differ_between_batches():
    model = net()
    x = pairs((3, 3), 2)[0][0]
    loader = [x, x]
    one = Dropout(model, samples=3, seed=1).predict_loader(loader, progress=False)
    torch.manual_seed(99)
    again = Dropout(model, samples=3, seed=1).predict_loader(loader, progress=False)
    other = Dropout(model, samples=3, seed=2).predict_loader(loader, progress=False)
    assert torch.equal(one.probabilities, again.probabilities)
    assert not torch.equal(one.probabilities, other.probabilities)
    assert not torch.equal(one.probabilities[:3], one.probabilities[3:])


# ------------------------------------------------- other likelihoods, errors


def test_multi_label_and_regression():
    x = pairs((4, 3), 2)[0][0]
    answers = Dropout(net(), Bernoulli(), samples=8).predict(x)
    assert answers.multilabel
    assert bool((answers.epistemic > 0).all())
    found = Dropout(net(), Gaussian(0.5), samples=8).predict(targets((4, 3), 2)[0][0])
    assert found.probabilities is None
    assert bool((found.epistemic > 0).all())


def test_without_dropout_it_says_where_it_looked_and_what_to_do():
    model = hybrid("llama")
    with pytest.raises(ConfigError, match=r"all 2 places.*attention_dropout.*p=0\.1"):
        Dropout(model)
    assert Dropout(model, samples=2, p=0.1).predict(tiny_batch(model)).epistemic.max() > 0
    with pytest.raises(ConfigError, match="no dropout layer or attribute at all"):
        Dropout(nn.Sequential(linear(2, 2)), p=0.1)


@pytest.mark.parametrize("settings", [{"samples": 0}, {"p": 1.0}, {"p": -0.1}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=r"Dropout\("):
        Dropout(net(), **settings)


def test_a_layer_that_is_the_model_itself_is_found():
    assert [site.p for site in find_sites(nn.Dropout(0.2))] == [0.2]
    assert find_sites(net())[0].path == "2"
    assert Dropout(net(), Categorical()).name == "MC dropout"
