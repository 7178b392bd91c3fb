"""Ensembles against the mean by hand, and members that share what is frozen."""

import pytest
import torch

from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.likelihood import Bernoulli, Gaussian
from posthoc_bhpeft.rivals import Ensemble, Point, load_ensemble
from posthoc_bhpeft.rivals.ensemble import share_frozen
from tests.hybrid.families import tiny_loader, tiny_model
from tests.models import mlp, pairs
from tests.tuned import plain_lora, tuned


def test_two_members_give_the_mean_of_their_probabilities():
    one, other = mlp(3, 4, 3), mlp(3, 4, 3, seed=5)
    loader = pairs((5, 3), 3, batches=3)
    each = [Point(m).predict_loader(loader, progress=False) for m in (one, other)]
    found = Ensemble((one, other)).predict_loader(loader, progress=False)
    mean = (each[0].probabilities + each[1].probabilities) / 2
    torch.testing.assert_close(found.probabilities, mean)
    torch.testing.assert_close(found.logits, (each[0].logits + each[1].logits) / 2)
    torch.testing.assert_close(found.total, torch.special.entr(mean).sum(-1))
    torch.testing.assert_close(found.aleatoric, (each[0].total + each[1].total) / 2)
    torch.testing.assert_close(found.epistemic, found.total - found.aleatoric)
    assert float(found.epistemic.min()) > 0
    assert torch.equal(found.labels, torch.cat([labels for _, labels in loader]))


@pytest.mark.parametrize("likelihood", [None, Bernoulli(), Gaussian(0.3)])
def test_an_ensemble_of_one_is_the_network(likelihood):
    model, loader = mlp(3, 4, 3), pairs((5, 3), 3)
    settings = [] if likelihood is None else [likelihood]
    found = Ensemble((model,), *settings).predict_loader(loader, progress=False)
    network = Point(model, *settings).predict_loader(loader, progress=False)
    for name in ("logits", "probabilities", "total", "aleatoric", "epistemic"):
        ours, theirs = getattr(found, name), getattr(network, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_in_regression_the_members_spread_is_epistemic():
    models = tuple(mlp(2, 3, 1, seed=seed) for seed in range(4))
    x = pairs((6, 2), 2)[0][0]
    found = Ensemble(models, Gaussian(0.5)).predict(x)
    outputs = torch.stack([model(x).detach() for model in models])
    torch.testing.assert_close(found.logits, outputs.mean(0))
    torch.testing.assert_close(found.covariance[:, 0, 0], outputs.var(0)[:, 0])
    expected = 0.5 * torch.log1p(outputs.var(0)[:, 0] / 0.5)
    torch.testing.assert_close(found.epistemic, expected)


def test_folders_are_loaded_with_one_base_in_memory(tmp_path):
    models = [tuned(seed=1), tuned(config=plain_lora(), seed=2), tuned(seed=3)]
    for number, model in enumerate(models):
        model.float().save_pretrained(tmp_path / str(number))
    folders = [tmp_path / str(number) for number in range(3)]
    ensemble = load_ensemble(folders)
    loader = tiny_loader(models[0])
    expected = Ensemble(tuple(models)).predict_loader(loader, progress=False)
    found = ensemble.predict_loader(loader, progress=False)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
    assert ensemble.name == "ensemble of 3"
    holds = [dict(m.named_parameters()) for m in ensemble.models]
    same = "base_model.model.bert.embeddings.word_embeddings.weight"
    assert len({held[same].data_ptr() for held in holds}) == 1
    trained = [n for n, p in holds[0].items() if p.requires_grad]
    assert all(holds[0][n].data_ptr() != holds[2][n].data_ptr() for n in trained)
    with_first = load_ensemble(folders[1:], first=ensemble.models[0])
    again = with_first.predict_loader(loader, progress=False)
    assert torch.equal(again.probabilities, found.probabilities)


def test_what_differs_or_is_trained_is_not_shared():
    one, other = mlp(2, 2, 2), mlp(2, 2, 2)
    one.requires_grad_(False)
    other[0].requires_grad_(False)
    with torch.no_grad():
        other[0].bias.add_(1)
    assert share_frozen(one, other) == one[0].weight.numel() * 8
    share_frozen(other, one)
    assert one[0].weight.data_ptr() == other[0].weight.data_ptr()
    assert one[0].bias.data_ptr() != other[0].bias.data_ptr()
    assert one[2].weight.data_ptr() != other[2].weight.data_ptr()


def test_a_whole_model_can_be_a_member(tmp_path):
    model = tiny_model("bert").float()
    model.save_pretrained(tmp_path / "whole")
    found = load_ensemble([tmp_path / "whole"]).predict_loader(tiny_loader(model), progress=False)
    expected = Point(model).predict_loader(tiny_loader(model), progress=False)
    torch.testing.assert_close(found.probabilities, expected.probabilities)


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="at least one member"):
        load_ensemble([])
    with pytest.raises(CheckpointError, match="no adapter"):
        load_ensemble([tmp_path])
    with pytest.raises(ModelError, match="several shapes"):
        Ensemble((mlp(3, 2), mlp(3, 4))).predict(pairs((5, 3), 2)[0][0])
    one, other = tuned(), tuned()
    other.config.id2label = {0: "good", 1: "fair", 2: "bad"}
    with pytest.raises(ConfigError, match="Member 2 of the ensemble has the classes"):
        Ensemble((one, other))
