"""The learner: what it trains on is what it says, and it can be stopped and started anywhere."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from posthoc_bhpeft import bayesianize
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.streams import Heads
from posthoc_bhpeft.streams.objective import Objective
from posthoc_bhpeft.streams.tokens import TokenCache
from posthoc_bhpeft.training import TrainingSettings, train
from tests.streams.tiny import QUICK, assert_same_weights, base, learner, met, round_of, texts

ONE, TWO, OTHER = round_of("one"), round_of("two", seed=1), round_of("other", names=("no", "yes"))


class Anchor:
    """`scale / 2 |theta - anchor|^2`."""

    def __init__(self, anchor, scale):
        self.anchor, self.scale = anchor, scale

    def penalty(self, model):
        found = dict(model.named_parameters())
        squares = [(found[n] - old).square().sum() for n, old in self.anchor.items()]
        return 0.5 * self.scale * torch.stack(squares).sum()


def moved(one, other):
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


# --------------------------------------------------------------------------------------- training


def test_one_round_is_ordinary_training():
    mine = met(ONE)
    mine.fit([("one", ONE.train)], seed=QUICK.seed)
    theirs = train(base(), ONE.train, settings=QUICK, progress=False, device="cpu").model
    found = dict(theirs.named_parameters())
    for name, weight in mine.snapshot().items():
        torch.testing.assert_close(weight, found[name].detach(), rtol=1e-4, atol=1e-6)


def test_rounds_are_learnt_at_once_each_among_its_own_outputs():
    settings = replace(QUICK, epochs=25, learning_rate=1e-2, batch_size=4)
    taught = met(ONE, OTHER, heads=Heads.PER_ROUND, settings=settings)
    rows = [("one", ONE.train), ("other", OTHER.train)]

    def nll():
        return [
            float(functional.cross_entropy(taught.logits(n, d), torch.tensor(d.labels)))
            for n, d in rows
        ]

    before = nll()
    taught.fit(rows, seed=0)
    assert all(now < 0.7 * then for now, then in zip(nll(), before, strict=True))


def test_the_loss_is_cross_entropy_of_the_rounds_own_outputs():
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs.requires_grad_()
    allowed = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    targets, groups = torch.tensor([1, 0, 4, 2, 3]), torch.tensor([0, 0, 1, 1, 1])
    rows = torch.tensor([4, 0, 2, 1])
    loss = Objective(targets, groups, allowed).loss({"logits": outputs}, rows)
    by_hand = [
        functional.cross_entropy(outputs[0, 2:], torch.tensor(1)),
        functional.cross_entropy(outputs[1, :2], torch.tensor(1)),
        functional.cross_entropy(outputs[2, 2:], torch.tensor(2)),
        functional.cross_entropy(outputs[3, :2], torch.tensor(0)),
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    (slope,) = torch.autograd.grad(loss, outputs)
    (wanted,) = torch.autograd.grad(torch.stack(by_hand).mean(), outputs)
    torch.testing.assert_close(slope, wanted)


def test_accumulated_batches_share_one_mean():
    outputs = torch.randn(6, 2, dtype=torch.float64)
    objective = Objective(
        torch.tensor([0, 1] * 3), torch.zeros(6).long(), torch.ones(1, 2, dtype=torch.bool)
    )
    whole = objective.loss((outputs,), torch.arange(6))
    parts = [objective.loss((outputs[r],), r, 6) for r in torch.arange(6).split([4, 2])]
    torch.testing.assert_close(sum(parts), whole)


def test_outputs_of_other_rounds_get_no_gradient():
    taught = met(ONE, OTHER, heads=Heads.PER_ROUND, settings=replace(QUICK, weight_decay=0.0))
    before = taught.snapshot()
    taught.fit([("other", OTHER.train)], seed=0)
    after = taught.snapshot()
    head = next(name for name in before if name.endswith("classifier.modules_to_save.default.bias"))
    assert torch.equal(after[head][:2], before[head][:2])
    assert not torch.equal(after[head][2:], before[head][2:])


def test_a_penalty_holds_the_weights_back():
    def distance(scale):
        taught = met(ONE)
        before = taught.snapshot()
        taught.fit([("one", ONE.train)], penalty=Anchor(before, scale), seed=0)
        return moved(before, taught.snapshot())

    assert distance(1e5) < 0.5 * distance(0.0)


def test_both_terms_are_in_the_figures():
    taught = met(ONE)
    figures = taught.fit([("one", ONE.train)], penalty=Anchor(taught.snapshot(), 9.0), seed=0)
    assert len(figures) == QUICK.epochs
    for epoch in figures:
        assert epoch["loss_penalty"] > 0
        parts = epoch["loss_data"] + epoch["loss_penalty"]
        assert epoch["train_loss"] == pytest.approx(parts, rel=1e-5)


def test_distillation_sees_each_row_with_its_teacher():
    taught, seen = met(ONE, TWO), []

    def teacher(name, data):
        first = {"one": 0, "two": 100}[name]
        return torch.arange(first, first + len(data)).float()[:, None].expand(-1, 2)

    def distill(logits, given, targets):
        seen.extend(zip(given[:, 0].tolist(), targets, strict=True))
        assert logits.requires_grad
        return logits.square().mean()

    rows = [("one", ONE.train), ("two", TWO.train)]
    taught.fit(rows, teacher=teacher, distill=distill, seed=0, validation=TWO.test)
    expected = {float(n): label for n, label in enumerate(ONE.train.labels)}
    expected |= {float(100 + n): label for n, label in enumerate(TWO.train.labels)}
    assert len(seen) == QUICK.epochs * len(expected)
    assert dict(seen) == expected


def test_distillation_counts_as_a_mean_over_rows():
    outputs = torch.randn(4, 2, dtype=torch.float64)
    objective = Objective(
        torch.zeros(4).long(),
        torch.zeros(4).long(),
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(4, 2),
        lambda logits, teacher, targets: torch.tensor(0.25, dtype=torch.float64),
    )
    plain = replace(objective, teacher=None, distill=None)
    rows = torch.arange(4)
    expected = plain.loss((outputs,), rows) + 0.25
    torch.testing.assert_close(objective.loss((outputs,), rows), expected)
    halves = [objective.loss((outputs[r],), r, 4) for r in rows.split(2)]
    torch.testing.assert_close(sum(halves), expected)


def test_a_teacher_needs_a_loss():
    taught = met(ONE)
    with pytest.raises(ConfigError, match="belong together"):
        taught.fit([("one", ONE.train)], teacher=taught.outputs, seed=0)


def test_the_best_epoch_is_kept():
    # Wrong labels in validation: the more is learnt, the worse it gets.
    labels = tuple(1 - label for label in ONE.train.labels)
    wrong = replace(ONE.train, labels=labels)
    taught = met(ONE, settings=replace(QUICK, epochs=20, learning_rate=2e-2, patience=2))
    figures = taught.fit([("one", ONE.train)], seed=0, validation=wrong)
    assert len(figures) < 20
    chosen = min(epoch["nll"] for epoch in figures)
    logits = taught.logits("one", wrong).double()
    nll = functional.cross_entropy(logits, torch.tensor(wrong.labels))
    assert float(nll) == pytest.approx(chosen, rel=1e-5)


def test_validation_rows_may_be_of_several_rounds():
    taught = met(ONE, OTHER, heads=Heads.PER_ROUND)
    rows = [("one", ONE.train), ("other", OTHER.train)]
    held_out = [("one", ONE.test), ("other", OTHER.test)]
    taught.settings = replace(QUICK, epochs=1)
    figures = taught.fit(rows, seed=0, validation=held_out)
    nll = [
        functional.cross_entropy(taught.logits(n, d).double(), torch.tensor(d.labels))
        for n, d in held_out
    ]
    assert figures[0]["nll"] == pytest.approx(float(torch.stack(nll).mean()), rel=1e-5)


def test_no_rows_no_training():
    taught = met(ONE)
    before = taught.snapshot()
    empty = TextData((), labels=(), label_names=("bad", "good"))
    assert taught.fit([("one", empty)], seed=0) == ()
    assert moved(before, taught.snapshot()) == 0.0


def test_rows_without_labels_are_refused():
    with pytest.raises(DataError, match="no classes"):
        met(ONE).fit([("one", TextData(("a", "b")))], seed=0)


def test_nothing_of_a_training_stays(capsys):
    taught = met(ONE)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    hooks = len(taught.model._forward_hooks)
    taught.fit([("one", ONE.train)], seed=0)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert capsys.readouterr().out == ""
    assert not taught.model.training
    assert len(taught.model._forward_hooks) == hooks
    assert all(p.grad is None for p in taught.model.parameters())


# ------------------------------------------------------------------------------- mixed precision


def test_mixed_precision_ends_with_the_training():
    taught = met(ONE, settings=replace(QUICK, mixed_precision="bf16"))
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    seen = []
    layer = taught.model.base_model.model.bert.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    for seed in range(2):
        seen.clear()
        taught.fit([("one", ONE.train)], seed=seed)
        assert set(seen) == {torch.bfloat16}, "each training has it, not only the first"
    assert all(weight.dtype == torch.float32 for weight in taught.snapshot().values())
    # Curvature is taken in full precision, evaluation as asked for.
    seen.clear()
    taught.model(**inputs)
    assert seen == [torch.float32]
    seen.clear()
    assert taught.outputs("one", ONE.test).dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_trainings_of_different_precision_follow_each_other():
    taught, plain = met(ONE), met(ONE)
    half = replace(QUICK, mixed_precision="bf16")
    taught.fit([("one", ONE.train)], seed=0, settings=half)
    rounded = taught.snapshot()
    taught.reset()
    taught.fit([("one", ONE.train)], seed=0)
    plain.fit([("one", ONE.train)], seed=0)
    assert_same_weights(taught, plain)
    taught.reset()
    taught.fit([("one", ONE.train)], seed=0, settings=half)
    assert moved(taught.snapshot(), rounded) == 0.0 < moved(plain.snapshot(), rounded)


def test_half_precision_needs_an_accelerator():
    with pytest.raises(ConfigError, match="'bf16'"):
        learner(settings=replace(QUICK, mixed_precision="fp16"))
    with pytest.raises(ConfigError, match="'no', 'bf16', 'fp16'"):
        TrainingSettings(mixed_precision="fp8")


# -------------------------------------------------------------------------------------- the model


def test_meeting_a_round_twice_changes_nothing():
    taught = met(ONE)
    before, labels = taught.snapshot(), taught.labels
    taught.meet(ONE)
    assert taught.labels == labels
    assert moved(before, taught.snapshot()) == 0.0


def test_the_model_knows_the_names_of_its_outputs():
    taught = met(ONE, OTHER)
    assert taught.model.config.id2label == {0: "bad", 1: "good", 2: "no", 3: "yes"}
    apart = met(ONE, TWO, heads=Heads.PER_ROUND)
    assert apart.model.config.label2id["two/bad"] == 2


def test_without_a_round_there_is_no_model():
    with pytest.raises(ConfigError, match=r"meet\(round\)"):
        _ = learner().model


def test_a_reset_finds_the_weights_of_the_start_and_of_every_new_output():
    taught = met(ONE)
    taught.fit([("one", ONE.train)], seed=0)
    taught.meet(OTHER)
    taught.reset()
    assert_same_weights(taught, met(ONE, OTHER))


def test_killed_and_started_again_it_gives_the_same_numbers():
    def second_round(taught):
        taught.meet(OTHER)
        taught.fit([("other", OTHER.train)], seed=taught.seed_of(1), validation=OTHER.test)
        return taught

    straight = met(ONE)
    straight.fit([("one", ONE.train)], seed=straight.seed_of(0))
    kept = copy.deepcopy(straight.snapshot())
    torch.rand(7)  # whatever else happened in the process
    again = met(ONE)
    again.restore(kept)
    assert_same_weights(second_round(again), second_round(straight))


def test_a_snapshot_of_other_rounds_is_refused():
    with pytest.raises(ModelError, match="same rounds"):
        met(ONE, OTHER).restore(met(ONE).snapshot())
    with pytest.raises(ModelError, match="nothing"):
        met(ONE).restore({"head": torch.zeros(1)})


# ------------------------------------------------------------------------------ outputs and loader


def test_outputs_come_in_the_order_of_the_rows():
    taught, data = met(ONE, OTHER), texts(70, seed=3)
    together = taught.outputs("one", data)
    alone = torch.cat([taught.outputs("one", data.take([n])) for n in range(len(data))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (70, 4)
    assert taught.outputs("one", data.take([])).shape == (0, 4)


def test_outputs_need_no_labels():
    data = texts(3)
    bare = TextData(data.texts)
    taught = met(ONE)
    assert torch.equal(taught.outputs("one", bare), taught.outputs("one", data))


def test_rows_are_tokenised_once():
    taught = met(ONE)
    calls = []
    cache = TokenCache(lambda *a, **k: calls.append(a) or taught.tokenizer(*a, **k), 24, capacity=9)
    first, second = texts(6, seed=1), texts(6, seed=2)
    expected = taught.tokenizer(list(first.texts), truncation=True, max_length=24)["input_ids"]
    for data in (first, first, TextData(first.texts)):
        assert [row["input_ids"] for row in cache.features(data)] == expected
    assert len(calls) == 1
    assert [row["labels"] for row in cache.labelled(first, (3,) * 6)] == [3] * 6
    assert "labels" not in cache.features(first)[0]
    # Nine rows are kept, so the second six drive out the first.
    cache.features(second)
    cache.features(second)
    cache.features(first)
    assert len(calls) == 3


def test_facing_has_the_precision_of_the_settings_and_factors_float32():
    taught = met(ONE)
    fitted = {}
    for precision in ("no", "bf16"):
        taught.settings = replace(taught.settings, mixed_precision=precision)
        with taught.facing("one") as faced:
            bayes = bayesianize(faced, taught.loader("one", ONE.train), progress=False)
        assert "forward" not in vars(taught.model)
        fitted[precision] = bayes.posterior.curvature
    differences = []
    for name, exact in fitted["no"].items():
        found = fitted["bf16"][name]
        assert {tensor.dtype for tensor in found.tensors().values()} == {torch.float32}
        if exact.trace():  # LoRA A has no gradient while B is zero
            differences.append(float(abs(found.trace() / exact.trace() - 1)))
    assert 0 < max(differences) < 0.1


@pytest.mark.parametrize("by_length", [False, True])
def test_the_loader_counts_labels_within_the_round(by_length):
    taught = met(ONE, OTHER, heads=Heads.PER_ROUND)
    loader = taught.loader("other", OTHER.train, batch_size=5, by_length=by_length)
    found = torch.cat([batch["labels"] for batch in loader])
    if by_length:
        found = loader.sampler.restore(found)
    assert found.tolist() == list(OTHER.train.labels)


def test_facing_a_round_is_a_classifier_of_its_labels():
    taught = met(ONE, OTHER, heads=Heads.PER_ROUND)
    model = taught.model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks, names = dict(model._forward_hooks), list(model.state_dict())
    expected = taught.logits("other", OTHER.test)
    with taught.facing("other") as faced:
        batches = list(taught.loader("other", OTHER.test))
        assert list(faced.state_dict()) == names
        with torch.no_grad():
            found = torch.cat([faced(**{**b, "labels": None}).logits for b in batches])
        bayes = bayesianize(faced, taught.loader("other", OTHER.train), progress=False)
        probabilities = bayes.predict_loader(batches, progress=False).probabilities
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert probabilities.shape == (len(OTHER.test), 2)
    assert dict(model._forward_hooks) == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert taught.outputs("one", ONE.test).shape[1] == 4
