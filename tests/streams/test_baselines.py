"""The replay-free baselines over two and three rounds of a tiny base model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.distance import L2Anchor
from posthoc_bhpeft.streams.methods.lwf import LwF
from posthoc_bhpeft.streams.methods.olora import (
    OrthogonalityPenalty,
    OrthogonalLoRA,
    lora_modules,
)
from posthoc_bhpeft.streams.methods.progressive import Progressive
from posthoc_bhpeft.streams.methods.warm_start import WarmStart
from posthoc_bhpeft.streams.rounds import Heads, Round
from posthoc_bhpeft.training import TrainingSettings
from tests.streams.tiny import assert_same_weights
from tests.texts import make_base, make_rows

SETTINGS = TrainingSettings(
    epochs=2, rank=2, bottleneck_size=4, num_virtual_tokens=2, batch_size=8, learning_rate=1e-2
)
#: Names of the labels of three rounds: a further round brings other classes.
NAMES = (("bad", "good"), ("bad", "fair"), ("down", "up"))
BOTH = pytest.mark.parametrize("heads", list(Heads))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_base(tmp_path_factory.mktemp("base"))
    # Dropout would shake the outputs that are to be held still.
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def a_round(number):
    rows = make_rows(16, seed=number)
    data = TextData(
        texts=tuple(str(row["text"]) for row in rows),
        labels=tuple((int(row["label"]) + number) % 2 for row in rows),
        label_names=NAMES[number],
    )
    return Round(f"round {number}", data)


ROUNDS = tuple(a_round(number) for number in range(3))


def start(base, heads=Heads.SHARED, **changes):
    return Learner.start(base, replace(SETTINGS, **changes), heads, device="cpu")


def run_through(method, learner, rounds=ROUNDS[:2]):
    run = method.start(learner)
    for index, round_ in enumerate(rounds):
        run.learn(round_, index)
    return run


def warm_start(base, heads):
    learner = start(base, heads)
    run_through(WarmStart(), learner)
    return learner


def distance(old, new):
    """Between two sets of weights; rows that the old one lacks are left out."""
    squares = [(new[name][: len(rows)] - rows).square().sum() for name, rows in old.items()]
    return torch.stack(squares).sum().sqrt().item()


# ------------------------------------------------------------------ LwF


@BOTH
@pytest.mark.parametrize("method", [LwF(weight=0.0), L2Anchor(weight=0.0)])
def test_weight_zero_is_warm_start(base, heads, method):
    learner = start(base, heads)
    run_through(method, learner)
    assert_same_weights(learner, warm_start(base, heads))


@BOTH
def test_lwf_holds_the_old_outputs_on_the_new_rows(base, heads):
    first, second = ROUNDS[:2]
    moved = {}
    for weight in (0.0, 1e3):
        learner = start(base, heads, epochs=8)
        run = run_through(LwF(weight), learner, [first])
        before = run.probabilities(first.name, second.train)
        run.learn(second, 1)
        now = learner.outputs(first.name, second.train)[:, :2].double().softmax(1)
        moved[weight] = (now - before).abs().mean().item()
    assert moved[1e3] < 0.25 * moved[0.0]


def test_lwf_learns_the_new_round_too(base):
    rounds = ROUNDS[::2]
    learner = start(base, Heads.PER_ROUND, epochs=30)
    run = run_through(LwF(), learner, rounds)
    for round_ in rounds:
        right = run.probabilities(round_.name, round_.train).argmax(1)
        assert (right == torch.tensor(round_.train.labels)).double().mean() > 0.7


# ------------------------------------------------------------------ L2


def test_l2_stays_nearer_the_larger_its_weight(base):
    paths = []
    for weight in (0.0, 1e2, 1e4):
        learner = start(base)
        run = run_through(L2Anchor(weight), learner, ROUNDS[:1])
        before = learner.snapshot()
        run.learn(ROUNDS[1], 1)
        paths.append(distance(before, learner.snapshot()))
    assert paths[0] > paths[1] > paths[2]
    assert paths[2] < 0.5 * paths[0]


# ------------------------------------------------------------------ progressive


@BOTH
@pytest.mark.parametrize("from_previous", [True, False])
def test_old_rounds_predict_as_before(base, heads, from_previous):
    learner = start(base, heads)
    run = Progressive(from_previous).start(learner)
    before = {}
    for index, round_ in enumerate(ROUNDS):
        run.learn(round_, index)
        before[round_.name] = run.probabilities(round_.name, ROUNDS[0].train)
    present = learner.snapshot()
    for name, old in before.items():
        new = run.probabilities(name, ROUNDS[0].train)
        # The head has more rows now, so a matrix product may round in another way.
        assert_close(new[:, : old.shape[1]], old, atol=1e-6, rtol=0)
        assert not new[:, old.shape[1] :].any()
    assert all(torch.equal(present[name], now) for name, now in learner.snapshot().items())


@BOTH
def test_the_newest_weights_are_those_of_a_warm_start(base, heads):
    learner = start(base, heads)
    run = run_through(Progressive(), learner)
    assert_same_weights(learner, warm_start(base, heads))
    newest = run.probabilities(ROUNDS[1].name, ROUNDS[1].train)
    assert_close(newest, learner.logits(ROUNDS[1].name, ROUNDS[1].train).double().softmax(1))


def test_from_scratch_depends_on_its_own_round_only(base):
    weights = []
    for first in ROUNDS[:2]:
        learner = start(base)
        learner.meet(ROUNDS[0])
        learner.meet(ROUNDS[1])
        run = Progressive(from_previous=False).start(learner)
        run.learn(first, 0)
        run.learn(ROUNDS[2], 1)
        weights.append(learner)
    assert_same_weights(*weights)


def test_a_round_not_learnt_yet_gets_the_newest_weights(base):
    learner = start(base)
    run = run_through(Progressive(), learner, ROUNDS[:2])
    present = learner.logits(ROUNDS[1].name, ROUNDS[2].train).double().softmax(1)
    learner.meet(ROUNDS[2])
    unseen = run.probabilities(ROUNDS[2].name, ROUNDS[2].train)
    assert unseen.shape[1] == len(learner.labels.names) > present.shape[1]


# ------------------------------------------------------------------ O-LoRA


def overlap_of(learner, run):
    """Mean squared cosine between rows of the present A and of the folded ones."""
    squares = []
    for name, module in lora_modules(learner.model):
        new = normalize(module.bhpeft_lora_A["default"].weight.detach())
        squares += [(normalize(old) @ new.T).square() for old, _ in run.folded[name]]
    return torch.stack(squares).mean().item()


def test_olora_weight_makes_the_rounds_orthogonal(base):
    found = []
    for weight in (0.0, 10.0):
        learner = start(base, peft="lora", epochs=20)
        run = run_through(OrthogonalLoRA(weight), learner, ROUNDS[:2])
        found.append(overlap_of(learner, run))
    assert found[1] < 0.1 * found[0]


def test_olora_folds_what_it_had_learnt(base):
    """Just before the next training the function is the one learnt."""
    learner = start(base, Heads.PER_ROUND, peft="lora", learning_rate=1e-12)
    learner.settings = replace(learner.settings, learning_rate=1e-2)
    run = run_through(OrthogonalLoRA(), learner, ROUNDS[:1])
    before = run.probabilities(ROUNDS[0].name, ROUNDS[0].train)
    learner.settings = replace(learner.settings, learning_rate=1e-12)
    run.learn(ROUNDS[1], 1)
    assert_close(run.probabilities(ROUNDS[0].name, ROUNDS[0].train), before, atol=1e-5, rtol=0)


def test_olora_penalty_counts_once_a_row(base):
    """The Trainer divides it by the rows, the paper has it beside a mean over rows."""
    learner = start(base, peft="lora")
    run = run_through(OrthogonalLoRA(weight=3.0), learner)
    past = {name: torch.cat([a for a, _ in pairs]) for name, pairs in run.folded.items()}
    expected = 3.0 * 7 * OrthogonalityPenalty(past, 1.0).penalty(learner.model)
    assert_close(run.penalty(7).penalty(learner.model), expected)


def test_olora_refuses_a_hybrid(base):
    with pytest.raises(ConfigError, match="LoRA alone"):
        run_through(OrthogonalLoRA(), start(base), ROUNDS[:1])


# ------------------------------------------------------------------ rounds without rows


METHODS = pytest.mark.parametrize(
    "method",
    [LwF(), L2Anchor(1.0), Progressive(), Progressive(from_previous=False), OrthogonalLoRA()],
)
EMPTY = Round("empty", ROUNDS[0].train.take([]))


def start_for(method, base):
    return start(base, peft="lora" if isinstance(method, OrthogonalLoRA) else "hybrid")


@METHODS
def test_a_round_without_rows_changes_nothing(base, method):
    learner = start_for(method, base)
    run = run_through(method, learner)
    rows = ROUNDS[0].train
    before = learner.snapshot(), run.state_bytes, run.probabilities(ROUNDS[1].name, rows)
    run.learn(EMPTY, 2)
    now = learner.snapshot()
    assert all(torch.equal(now[name], old) for name, old in before[0].items())
    assert run.state_bytes == before[1]
    assert torch.equal(run.probabilities(EMPTY.name, rows), before[2])


@METHODS
def test_the_first_round_with_rows_is_trained_the_ordinary_way(base, method):
    learner, plain = start_for(method, base), start_for(method, base)
    run_through(method, learner, [EMPTY, ROUNDS[0]])
    run_through(WarmStart(), plain, [EMPTY, ROUNDS[0]])
    assert_same_weights(learner, plain)


# ------------------------------------------------------------------ state


@pytest.mark.parametrize("method", [LwF(), L2Anchor(1.0)])
def test_state_that_does_not_grow(base, method):
    run = method.start(start(base))
    for index, round_ in enumerate(ROUNDS):
        run.learn(round_, index)
        assert run.state_bytes == 0


def test_state_of_progressive_grows_by_one_set_of_weights_a_round(base):
    learner = start(base)
    run, sizes = Progressive().start(learner), []
    for index, round_ in enumerate(ROUNDS):
        run.learn(round_, index)
        sizes.append(sum(tensor.nbytes for tensor in learner.snapshot().values()))
        assert run.state_bytes == sum(sizes[:-1])
    assert sizes[0] > 0


def test_state_of_olora_grows_by_one_pair_a_round(base):
    learner = start(base, peft="lora")
    run = OrthogonalLoRA().start(learner)
    # LoRA on query and value of two layers: A (2, 16) and B (16, 2) in float32.
    for index, round_ in enumerate(ROUNDS):
        run.learn(round_, index)
        assert run.state_bytes == index * 4 * (2 * 16 + 16 * 2) * 4
