"""The carried posterior's predictions: of the rows asked for, in their order."""

from __future__ import annotations

import math
import re

import pytest
import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ModelError
from posthoc_bhpeft.streams import Heads, Round, Stream, score
from posthoc_bhpeft.streams.methods import CarriedPosterior
from posthoc_bhpeft.streams.writing import _training_record
from tests.streams.tiny import QUICK, base, learner, round_of, texts


def test_predictions_are_in_the_order_of_the_rows():
    run = CarriedPosterior().start(learner())
    one = round_of("one")
    run.learn(one, 0)
    # Short texts first: batches go from long to short.
    rows = TextData(tuple(" ".join(["kind meal slow"] * n) for n in (1, 4, 2, 5, 3)))
    found = run.predict("one", rows, batch_size=2)
    expected = run.learner.logits("one", rows)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in expected.tolist()}) == len(rows)
    torch.testing.assert_close(run.probabilities("one", rows), found.probabilities.double())


@pytest.mark.parametrize("consolidate", [True, False])
def test_the_reason_tells_how_far_the_weights_are_in_the_end(consolidate):
    run = CarriedPosterior(consolidate=consolidate).start(learner())
    for index in range(2):
        run.learn(round_of(f"round {index}", 12, index), index)
    said = re.search(r"have moved ([\d.]+) nats", run.bayes.explain())
    assert said[1] == f"{0.5 * run.bayes.posterior.squared_movement():.1f}"
    # What the rule said of the floor is still there, once.
    assert run.bayes.reason.count("Prior carried over") == 1
    assert "floor" in run.bayes.reason.lower() or "precision" in run.bayes.reason.lower()


def test_a_posterior_of_one_round_does_not_speak_for_all_outputs():
    run = CarriedPosterior().start(learner(Heads.PER_ROUND))
    rounds = round_of("two", 12), round_of("three", 12, 1, ("bad", "good", "fair"))
    for index, round_ in enumerate(rounds):
        run.learn(round_, index)
    loader = run.learner.loader("three", rounds[1].test)
    with pytest.raises(ModelError, match=r"gives 5 outputs a row.*fitted on 3.*data, round_name"):
        run.bayes.predict_loader(loader, progress=False)
    # Through the run each round has its own, also those that the posterior was not fitted on.
    for round_, n_outputs in zip(rounds, (2, 3), strict=True):
        assert run.predict(round_.name, round_.test).probabilities.shape == (12, n_outputs)
    with run.learner.facing("three"):
        assert run.bayes.predict_loader(loader, progress=False).probabilities.shape == (12, 3)


def test_odd_rounds_in_memory_are_learnt_as_by_a_stream(tmp_path):
    one_class = Round("one", texts(6, 4, ("good",)), texts(4, 5, ("good",)))
    empty = Round("empty", TextData((), labels=(), label_names=("bad", "new")), texts(4))
    rounds = one_class, empty, round_of("first", 10), empty_again(empty), round_of("last", 10, 2)
    stream = Stream(tmp_path / "s", base(), QUICK, device="cpu", progress=False)
    stream.run(rounds)
    run = CarriedPosterior().start(learner())
    for index, round_ in enumerate(rounds):
        run.learn(round_, index)
        scored = score(run, run.learner.labels, round_.name, rounds[: index + 1])
        assert all(one.accuracy == 1 for one in scored) or index > 1
    assert run.learner.labels.names == ("good", "bad")
    mine, its = run.bayes.posterior.mean, stream.bayes.posterior.mean
    assert list(mine) == list(its)
    for name, one in mine.items():
        torch.testing.assert_close(one, its[name], rtol=1e-4, atol=1e-5)


def empty_again(empty):
    return Round("empty again", empty.train)


@pytest.mark.parametrize(
    ("losses", "best"), [([math.nan, 0.5, 0.7], 2), ([0.5, math.nan], 1), ([math.nan] * 2, 1)]
)
def test_training_json_names_the_epoch_that_was_kept(losses, best, tmp_path):
    run = CarriedPosterior().start(learner())
    round_ = round_of("one", 8)
    lineage = Stream(tmp_path, base(), QUICK, device="cpu", progress=False).learn(round_)
    run.history = tuple({"train_loss": 0.1, "nll": nll} for nll in losses)
    assert _training_record(run, base(), lineage).best_epoch == best
