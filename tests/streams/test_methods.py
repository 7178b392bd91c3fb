"""Warm start, joint training and replay: what is trained on, and what is carried."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams import Heads, Round
from posthoc_bhpeft.streams.methods import EWC, CarriedPosterior, Joint, Replay, WarmStart
from posthoc_bhpeft.streams.methods.replay import stratified_share
from tests.streams.tiny import QUICK, assert_same_weights, learner, met, round_of, texts

METHODS = [WarmStart(), Joint(), Joint(epochs=1), Replay(0.25)]
WITH_CURVATURE = [CarriedPosterior(), EWC(), EWC(online=True)]
ONE, TWO, OTHER = round_of("one"), round_of("two", seed=1), round_of("other", names=("no", "yes"))
EMPTY = Round("empty", TextData((), labels=(), label_names=("bad", "good")))


def learnt(method, *rounds, **options):
    taught = learner(**options)
    run = method.start(taught)
    for index, round_ in enumerate(rounds):
        run.learn(round_, index)
    return run, taught


def utf8(*data):
    return sum(len(text.encode()) for rows in data for text in rows.texts)


@pytest.mark.parametrize("heads", Heads)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_probabilities_are_of_the_rounds_outputs(method, heads):
    run, _ = learnt(method, ONE, OTHER, heads=heads)
    p = run.probabilities("one", ONE.test)
    assert p.shape == (len(ONE.test), 4 if heads is Heads.SHARED else 2)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_run_repeats_itself(method):
    assert_same_weights(learnt(method, ONE, TWO)[1], learnt(method, ONE, TWO)[1])


@pytest.mark.parametrize("heads", Heads)
@pytest.mark.parametrize("method", [*METHODS, *WITH_CURVATURE], ids=str)
def test_rounds_without_rows_or_with_one_class_or_few_rows(method, heads):
    one_class = Round("one class", texts(8).take(range(0, 8, 2)), texts(4))
    run, _ = learnt(method, EMPTY, one_class, round_of("few", 2), EMPTY, heads=heads)
    assert torch.isfinite(run.probabilities("few", texts(3))).all()


@pytest.mark.parametrize("method", [WarmStart(), Replay(0.25), *WITH_CURVATURE], ids=str)
def test_a_round_without_rows_changes_no_weight(method):
    assert_same_weights(learnt(method, ONE, EMPTY)[1], learnt(method, ONE)[1])


def test_warm_start_goes_on_from_the_weights_before():
    _, taught = learnt(WarmStart(), ONE, TWO)
    by_hand = met(ONE)
    by_hand.fit([("one", ONE.train)], seed=by_hand.seed_of(0))
    by_hand.meet(TWO)
    by_hand.fit([("two", TWO.train)], seed=by_hand.seed_of(1))
    assert_same_weights(taught, by_hand)


def test_joint_is_training_on_everything_at_once():
    run, taught = learnt(Joint(), ONE, TWO)
    by_hand = met(ONE, TWO)
    whole = TextData(
        ONE.train.texts + TWO.train.texts,
        labels=ONE.train.labels + TWO.train.labels,
        label_names=("bad", "good"),
    )
    by_hand.fit([("one", whole)], seed=by_hand.seed_of(1))
    assert_same_weights(taught, by_hand)
    assert run.state_bytes == utf8(ONE.train, TWO.train)


def test_joint_has_epochs_of_its_own():
    one_epoch = replace(QUICK, epochs=1)
    assert_same_weights(
        learnt(Joint(epochs=1), ONE, TWO)[1], learnt(Joint(), ONE, TWO, settings=one_epoch)[1]
    )


def test_joint_stops_early_on_the_validation_rows_of_all_rounds():
    rounds = [replace(round_, validation=round_.test) for round_ in (ONE, TWO)]
    run, taught = learnt(Joint(), *rounds)
    by_hand = met(*rounds)
    by_hand.fit(
        [(r.name, r.train) for r in rounds],
        seed=by_hand.seed_of(1),
        validation=[(r.name, r.test) for r in rounds],
    )
    assert_same_weights(taught, by_hand)
    assert run.state_bytes == utf8(ONE.train, TWO.train, ONE.test, TWO.test)


def test_replay_mixes_kept_rows_into_the_new_ones():
    run, taught = learnt(Replay(0.25), ONE, TWO)
    by_hand = met(ONE)
    by_hand.fit([("one", ONE.train)], seed=by_hand.seed_of(0))
    kept = stratified_share(ONE.train, 0.25, by_hand.seed_of(0))
    assert len(kept) == 4
    by_hand.meet(TWO)
    by_hand.fit([("one", kept), ("two", TWO.train)], seed=by_hand.seed_of(1))
    assert_same_weights(taught, by_hand)
    newest = stratified_share(TWO.train, 0.25, by_hand.seed_of(1))
    assert run.state_bytes == utf8(kept, newest)


def test_replaying_everything_in_one_round_is_warm_start():
    assert_same_weights(learnt(Replay(1.0), ONE)[1], learnt(WarmStart(), ONE)[1])


def test_a_share_is_drawn_from_every_class_alike():
    labels = (0,) * 60 + (1,) * 38 + (2,) * 2
    data = TextData(tuple(map(str, range(100))), labels=labels, label_names=("a", "b", "c"))
    kept = stratified_share(data, 0.1, seed=3)
    assert Counter(kept.labels) == {0: 6, 1: 4, 2: 1}
    assert list(kept.indices) == sorted(kept.indices)
    assert stratified_share(data, 0.1, seed=3).texts == kept.texts
    assert stratified_share(data, 0.1, seed=4).texts != kept.texts
    assert stratified_share(data, 1.0, seed=0).texts == data.texts


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(ConfigError, match="share"):
        Replay(share)


def test_joint_needs_an_epoch():
    with pytest.raises(ConfigError, match="epochs"):
        Joint(epochs=0)
