"""The carried posterior about LoRA products: the same method, another penalty."""

from __future__ import annotations

import json

import pytest

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.settings import decode, encode
from posthoc_bhpeft.streams import Heads
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior, Parametrization
from tests.streams.tiny import learner, round_of

PRODUCT = CarriedPosterior(parametrization=Parametrization.PRODUCT)


def test_rounds_are_learnt_and_carried_by_product():
    run = PRODUCT.start(learner(Heads.PER_ROUND))
    run.learn(round_of("one"), 0)
    first, before = run.bayes, run.carried()
    assert before.products == first.posterior.products != ()
    run.learn(round_of("two", seed=1), 1)
    posterior = run.bayes.posterior
    assert posterior.prior.products
    assert posterior.squared_movement() > 0
    for product in posterior.products:
        kept = before.held[product.name]
        assert posterior.prior.held[product.name].shape == kept.shape == product.shape
        assert float((posterior.prior.held[product.name].dense() - kept.dense()).abs().max()) == 0
    assert run.probabilities("one", round_of("one").test).shape == (16, 2)


def test_only_what_is_carried_counts_as_state():
    run = PRODUCT.start(learner())
    assert run.state_bytes == 0
    run.learn(round_of("one"), 0)
    prior = run.carried()
    numbers = sum(t.numel() for o in prior.held.values() for t in o.tensors().values())
    assert run.state_bytes == 4 * numbers
    assert prior.carried.keys() > prior.held.keys()


def test_apart_is_the_default_and_keeps_no_products():
    run = CarriedPosterior().start(learner())
    run.learn(round_of("one"), 0)
    assert CarriedPosterior().parametrization is Parametrization.APART
    assert not run.bayes.posterior.products
    assert not run.carried().products


def test_it_is_written_and_read():
    content = json.loads(json.dumps(encode(PRODUCT)))
    assert content["parametrization"] == "product"
    fields = {name: value for name, value in content.items() if name in ("type", "parametrization")}
    assert decode(fields, more=(CarriedPosterior,)) == PRODUCT


def test_another_parametrization_is_refused():
    with pytest.raises(ConfigError, match=r"'sum'; supported are \['apart', 'product'\]"):
        CarriedPosterior(parametrization="sum")
