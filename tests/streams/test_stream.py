"""Streams on disk: killed anywhere they end with the same numbers, and odd rounds lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import CheckpointError, ConfigError, DataError, ModelError
from posthoc_bhpeft.saving import posterior_tensors
from posthoc_bhpeft.streams import Heads, Round, Stream, StreamReport, stream, writing
from posthoc_bhpeft.streams.identity import STREAM_FILE
from posthoc_bhpeft.streams.lineage import LINEAGE_FILE
from posthoc_bhpeft.streams.methods import WarmStart, carried
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior, Parametrization
from tests.streams.tiny import QUICK, base, learner, round_of, texts

BOTH = pytest.mark.parametrize("heads", list(Heads))
BAD_GOOD, GOOD_FAIR = ("bad", "good"), ("good", "fair")
#: Ten rows, then a label that is new, then a validation set.
ROUNDS = (
    round_of("first", 10),
    round_of("second", 16, seed=1, names=GOOD_FAIR),
    round_of("third", 16, seed=2, validation=texts(8, 9)),
)


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def start(folder, heads=Heads.SHARED, **changes):
    settings = replace(QUICK, **changes)
    return Stream(folder, base(), settings, heads=heads, device="cpu", progress=False)


def again(folder):
    return Stream.open(folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Streams that nothing interrupted."""
    folders = {heads: tmp_path_factory.mktemp("whole") / heads.value for heads in Heads}
    for heads, folder in folders.items():
        start(folder, heads).run(ROUNDS)
    return folders


@pytest.fixture(params=list(Heads), ids=lambda heads: heads.value)
def whole(request, wholes):
    """One of them."""
    return wholes[request.param]


def contents(folder):
    """Everything that a stream leaves behind but the time it took, by file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found |= {f"{name}/{key}": tensor for key, tensor in load_file(path).items()}
        elif path.name in (LINEAGE_FILE, "training.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in content.items() if key != "seconds"}
        elif path.is_file() and path.suffix == ".json":
            found[name] = path.read_text(encoding="utf-8")
    return found


def assert_same(one, other):
    """Equal to the last bit, in all files."""
    mine, theirs = contents(one), contents(other)
    assert list(mine) == list(theirs)
    different = [
        name
        for name, value in mine.items()
        if not (
            torch.equal(value, theirs[name]) if torch.is_tensor(value) else value == theirs[name]
        )
    ]
    assert not different


# ------------------------------------------------------------------ killed and continued


def at_call(number, function):
    """The function, until this call of it."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(number)
        if len(calls) == number:
            raise Killed
        return function(*arguments, **options)

    return wrapped


def after_calls(number, function):
    """The function, its effects included, until it has returned so often."""
    calls = []

    def wrapped(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(number)
        if len(calls) == number:
            raise Killed
        return result

    return wrapped


def kill_in_training(patch):
    # Two steps an epoch in the first round, four in the second: in the middle of its training.
    patch.setattr(Trainer, "training_step", at_call(7, Trainer.training_step))


def kill_in_fit(patch):
    patch.setattr(carried, "bayesianize", at_call(2, carried.bayesianize))


def kill_after_fit(patch):
    patch.setattr(carried, "bayesianize", after_calls(3, carried.bayesianize))


def kill_in_scores(patch):
    patch.setattr(stream, "score", after_calls(3, stream.score))


def kill_in_save(patch):
    save = BayesianPeft.write_files
    patch.setattr(BayesianPeft, "write_files", after_calls(2, save))


def kill_before_rename(patch):
    replace_path, places = Path.replace, []

    def replaced(self, target):
        if Path(target).name.startswith("round-"):
            places.append(target)
            if len(places) == 2:
                raise Killed
        return replace_path(self, target)

    patch.setattr(Path, "replace", replaced)


def kill_after_rename(patch):
    patch.setattr(stream, "write_round", after_calls(2, writing.write_round))


KILLS = (
    kill_in_training,
    kill_in_fit,
    kill_after_fit,
    kill_in_scores,
    kill_in_save,
    kill_before_rename,
    kill_after_rename,
)


@pytest.mark.parametrize(
    ("heads", "kill"),
    [*((Heads.SHARED, kill) for kill in KILLS), (Heads.PER_ROUND, kill_in_training)],
    ids=lambda value: value.value if isinstance(value, Heads) else value.__name__,
)
def test_killed_anywhere_it_ends_with_the_same_numbers(wholes, heads, kill, tmp_path, monkeypatch):
    whole, folder = wholes[heads], tmp_path / heads.value
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            start(folder, heads).run(ROUNDS)
    done = again(folder).report.rounds
    assert len(done) in (1, 2)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert again(folder).run(ROUNDS).rounds[: len(done)] == done
    assert_same(folder, whole)


def test_the_same_object_may_go_on_after_an_error(whole, tmp_path, monkeypatch):
    learning = start(tmp_path / whole.name, Heads(whole.name))
    learning.learn(ROUNDS[0])
    # A model in memory that training has begun to change must not be the one to start from.
    assert learning.bayes.posterior.n_rows == 10
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", at_call(3, Trainer.training_step))
        with pytest.raises(Killed):
            learning.learn(ROUNDS[1])
    learning.run(ROUNDS)
    assert_same(tmp_path / whole.name, whole)


def test_rounds_one_at_a_time_in_new_processes(whole, tmp_path):
    """Only what is on disk goes from one to the next; test rows are given again to be scored."""
    folder = tmp_path / whole.name
    start(folder, Heads(whole.name)).learn(ROUNDS[0])
    for count in (2, 3):
        again(folder).run(ROUNDS[:count])
    assert_same(folder, whole)


def test_half_written_folders_of_killed_processes_do_no_harm(whole, tmp_path):
    folder = tmp_path / whole.name
    start(folder, Heads(whole.name)).learn(ROUNDS[0])
    for name, age in ((".round-002-second.old", 7200), (".round-002-second.new", 0)):
        (folder / name).mkdir()
        (folder / name / LINEAGE_FILE).write_text("{", encoding="utf-8")
        os.utime(folder / name, (time.time() - age,) * 2)
    again(folder).run(ROUNDS)
    # Another process might still be writing to the younger one.
    assert [path.name for path in folder.glob(".*")] == [".round-002-second.new"]


def test_nothing_is_trained_again(whole, monkeypatch):
    monkeypatch.setattr(Trainer, "training_step", at_call(1, Trainer.training_step))
    report = again(whole).run(ROUNDS)
    assert [one.name for one in report.rounds] == ["first", "second", "third"]


@BOTH
@pytest.mark.parametrize("parametrization", list(Parametrization), ids=lambda p: p.value)
def test_the_folder_holds_all_that_is_carried(heads, parametrization, tmp_path):
    """The same method in memory gives the same numbers."""
    method = CarriedPosterior(parametrization=parametrization)
    learning = Stream(tmp_path, base(), QUICK, method, heads, device="cpu", progress=False)
    learning.run(ROUNDS)
    run = method.start(learner(heads))
    for index, round_ in enumerate(ROUNDS):
        run.learn(round_, index)
    mine, theirs = (
        posterior_tensors(learning.bayes.posterior),
        posterior_tensors(run.bayes.posterior),
    )
    assert list(mine) == list(theirs)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]
    for round_ in ROUNDS:
        expected = run.probabilities(round_.name, round_.test).float()
        assert torch.equal(learning.predict(round_.test, round_.name).probabilities, expected)


# ------------------------------------------------------------------ what is written


def test_the_lineage_and_the_card_say_how_far_the_weights_are_in_the_end(whole):
    opened = again(whole)
    last = opened.report.rounds[-1]
    moved = f"moved {0.5 * opened.bayes.posterior.squared_movement():.1f} nats"
    assert moved in last.prior
    assert moved in (whole / last.folder / "README.md").read_text(encoding="utf-8")


def test_the_lineage_says_where_a_round_comes_from(whole):
    first, second, third = again(whole).report.rounds
    assert (first.parent, first.parent_posterior) == (None, None)
    assert (second.parent, second.parent_posterior) == (first.folder, first.posterior)
    assert third.parent_posterior == second.posterior
    assert [one.index for one in (first, second, third)] == [1, 2, 3]
    assert [one.folder for one in (first, third)] == ["round-001-first", "round-003-third"]
    assert second.train.digest == ROUNDS[1].train.digest
    assert second.train.label_counts == {"good": 8, "fair": 8}
    assert (first.train.n, third.validation.n) == (10, 8)
    assert [one.seed for one in (first, second, third)] == [0, 1000, 2000]
    assert second.labels.rounds == ("first", "second")
    assert second.settings["epochs"] == 2
    assert second.method["type"] == "CarriedPosterior"
    assert {"torch", "peft"} < set(second.versions)
    # Merged to two terms: what is carried grows with the head alone.
    assert first.state_bytes < second.state_bytes
    assert third.state_bytes <= 1.02 * second.state_bytes
    # Two terms each, so the third round's prior had to merge.
    assert not second.merge_errors
    assert all(0 <= error < 1 for error in third.merge_errors.values())


def test_data_loss_and_penalty_stand_apart(whole):
    first, second, third = again(whole).report.rounds
    assert "loss_penalty" not in first.training[-1]
    for figures in (*second.training, *third.training):
        total = figures["loss_data"] + figures["loss_penalty"]
        assert total == pytest.approx(figures["train_loss"], rel=1e-5)
    assert all("nll" in figures for figures in third.training)


def test_scores_are_of_all_rounds_so_far(whole):
    report = again(whole).report
    assert [[s.tested for s in one.scores] for one in report.rounds] == [
        ["first"],
        ["first", "second"],
        ["first", "second", "third"],
    ]
    shared = again(whole).identity.heads is Heads.SHARED
    # The third round's labels are those of the first: known beforehand, if shared.
    assert [len(one.scores_before) for one in report.rounds] == [0, 0, int(shared)]
    assert (report.summary()["forward_transfer"] is None) != shared
    assert report.summary("first")["backward_transfer"] == 0.0
    own = {one.name: one.scores[-1].accuracy for one in report.rounds}
    last = {s.tested: s.accuracy for s in report.rounds[-1].scores}
    expected = ((last["first"] - own["first"]) + (last["second"] - own["second"])) / 2
    assert report.summary()["backward_transfer"] == pytest.approx(expected)
    assert report.accuracies()["second"] == [None, own["second"], last["second"]]


def test_predictions_are_those_that_were_scored(whole):
    opened, test = again(whole), ROUNDS[1].test
    prediction = opened.predict(test, "second", batch_size=5)
    names = opened.label_names("second")
    labels = torch.tensor([names.index(test.label_names[label]) for label in test.labels])
    score = opened.report.scores.at("third", "second")
    assert len(names) == score.outputs == (3 if len(opened.label_names("first")) == 3 else 2)
    right = (prediction.probabilities.argmax(1) == labels).double().mean()
    assert right == pytest.approx(score.accuracy)
    nll = -prediction.probabilities.double().gather(1, labels[:, None]).log().mean()
    assert nll == pytest.approx(score.nll, rel=1e-4)


def test_a_shared_round_is_a_checkpoint_like_any_other(tmp_path):
    learning = start(tmp_path / "stream")
    lineage = learning.learn(ROUNDS[0])
    bayes = BayesianPeft.from_pretrained(tmp_path / "stream" / lineage.folder)
    for name, mean in learning.bayes.posterior.mean.items():
        assert torch.equal(bayes.posterior.mean[name], mean)
    card = (tmp_path / "stream" / lineage.folder / "README.md").read_text(encoding="utf-8")
    assert f'from_pretrained("stream/{lineage.folder}")' in card


def test_a_killed_start_is_no_stream_and_does_not_stand_in_the_way(tmp_path):
    for name, age in ((f".{STREAM_FILE}.abc", 7200), (f".{STREAM_FILE}.def", 0)):
        (tmp_path / name).write_text('{"format"', encoding="utf-8")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    start(tmp_path).learn(ROUNDS[0])
    assert again(tmp_path).report.rounds[0].name == "first"
    # Another process might still be writing to the younger one.
    assert [path.name for path in tmp_path.glob(".*")] == [f".{STREAM_FILE}.def"]


# ------------------------------------------------------------------ odd rounds

EMPTY = Round("empty", TextData((), labels=(), label_names=BAD_GOOD), texts(6, 3))
ONE_CLASS = Round("one", texts(6, 4, ("good",)), texts(4, 5, ("good",)))


@BOTH
def test_a_round_without_rows_changes_nothing(tmp_path, heads):
    learning = start(tmp_path, heads)
    learning.run((ROUNDS[0], EMPTY, ROUNDS[1]))
    first, empty, second = learning.report.rounds
    assert "no rows" in empty.note
    assert empty.training == ()
    assert empty.posterior == first.posterior == second.parent_posterior
    assert empty.state_bytes == first.state_bytes
    assert empty.scores[0] == replace(first.scores[0], trained="empty")
    assert "empty" not in second.labels.rounds
    # With outputs of its own for each round, its test rows cannot be scored.
    tested = ["first", "empty", "second"] if heads is Heads.SHARED else ["first", "second"]
    assert [s.tested for s in second.scores] == tested
    assert StreamReport(learning.report.rounds).summary()["backward_transfer"] is not None


def test_only_the_seed_tells_that_there_was_a_round_without_rows(tmp_path):
    start(tmp_path / "a").run((EMPTY, ROUNDS[0]))
    start(tmp_path / "b", seed=QUICK.seed).run((ROUNDS[0],))
    empty, first = again(tmp_path / "a").report.rounds
    assert (empty.posterior, empty.scores, first.parent) == (None, (), empty.folder)
    assert not (tmp_path / "a" / empty.folder / "adapter_config.json").exists()
    assert first.labels == again(tmp_path / "b").report.rounds[0].labels


def test_a_first_round_of_one_label_waits_for_another(tmp_path):
    learning = start(tmp_path)
    alone = learning.learn(ONE_CLASS)
    assert "single label" in alone.note
    assert (alone.posterior, alone.scores) == (None, ())
    with pytest.raises(ConfigError, match="learnt nothing yet"):
        learning.predict(ONE_CLASS.test)
    later = learning.learn(round_of("later", names=("bad",)))
    assert later.labels.names == ("good", "bad")
    assert [s.tested for s in later.scores] == ["one", "later"]


@BOTH
def test_a_later_round_of_one_label(tmp_path, heads):
    learning = start(tmp_path, heads)
    first, alone, last = learning.run((ROUNDS[0], ONE_CLASS, ROUNDS[1])).rounds
    if heads is Heads.SHARED:
        assert not alone.note
        assert alone.posterior != first.posterior
        assert [s.tested for s in last.scores] == ["first", "one", "second"]
    else:
        assert "single label" in alone.note
        assert alone.posterior == first.posterior
        with pytest.raises(DataError, match="no outputs"):
            learning.predict(ONE_CLASS.test, "one")
    torch.testing.assert_close(
        learning.predict(ROUNDS[0].test, "first").probabilities.sum(1), torch.ones(10)
    )


def test_a_round_without_test_rows(tmp_path):
    first, second = replace(ROUNDS[0], test=None), ROUNDS[1]
    report = start(tmp_path).run((first, second))
    assert report.rounds[0].scores == ()
    assert report.summary("first") == dict.fromkeys(report.summary("first"))
    assert [s.tested for s in report.rounds[1].scores] == ["second"]
    assert report.summary()["average_accuracy"] == report.rounds[1].scores[0].accuracy
    assert list(report.accuracies()) == ["second"]


def test_only_rows_at_hand_are_scored(tmp_path):
    """The old data may be gone; the stream goes on without it."""
    start(tmp_path).learn(ROUNDS[0])
    lineage = again(tmp_path).learn(ROUNDS[1])
    assert [s.tested for s in lineage.scores] == ["second"]
    assert lineage.labels.names == ("bad", "good", "fair")


# ------------------------------------------------------------------ what is refused


def test_two_rounds_of_one_name(tmp_path):
    with pytest.raises(DataError, match=r"Rounds 1 and 2 are both named 'first'"):
        start(tmp_path).run((EMPTY_FIRST, EMPTY_FIRST))


EMPTY_FIRST = replace(EMPTY, name="first", test=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": texts(9, 5)}, r"train rows \(10 then, 9 now\)"),
        ({"test": None}, r"test rows \(10 then, 0 now\)"),
        ({"validation": texts(4)}, r"validation rows \(0 then, 4 now\)"),
        ({"train": replace(ROUNDS[0].train, label_names=("good", "bad"))}, "its labels"),
    ],
    ids=["train", "test", "validation", "labels"],
)
def test_a_round_that_has_changed(whole, changes, message):
    with pytest.raises(DataError, match=message) as error:
        again(whole).run((replace(ROUNDS[0], **changes),))
    assert "'first'" in str(error.value)
    assert "delete round-001-first" in str(error.value)


def test_another_order(whole):
    with pytest.raises(DataError, match="'first' was learnt as number 1"):
        again(whole).run((ROUNDS[1], ROUNDS[0]))


def test_labels_without_names(tmp_path):
    with pytest.raises(DataError, match="no names of labels"):
        Round("nameless", TextData(("a",), labels=(0,)))
    with pytest.raises(DataError, match="no classes as labels"):
        start(tmp_path).learn(Round("bare", TextData(("a",), label_names=BAD_GOOD)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": replace(QUICK, epochs=9)}, r"settings\.epochs was 2, and is now 9"),
        ({"method": CarriedPosterior(weight=7.0)}, r"method\.weight was .*, and is now 7\.0"),
        ({"base": "minilm"}, "is now 'minilm'"),
    ],
    ids=["settings", "method", "base"],
)
def test_a_stream_keeps_its_settings(whole, options, message):
    with pytest.raises(ConfigError, match=message):
        Stream(whole, **options)


def test_other_heads(whole):
    others = {Heads.SHARED: Heads.PER_ROUND, Heads.PER_ROUND: Heads.SHARED}
    with pytest.raises(ConfigError, match="heads was"):
        Stream(whole, heads=others[Heads(whole.name)])


def test_settings_left_out_are_those_of_the_stream(whole):
    identity = Stream(whole).identity
    assert identity.settings == QUICK
    assert identity.heads is Heads(whole.name)
    assert identity.method == CarriedPosterior()
    assert identity.base == str(Path(base()).resolve())


def test_folders_that_are_no_stream(tmp_path):
    with pytest.raises(ConfigError, match="no stream at"):
        Stream.open(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty and holds no stream"):
        Stream(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Stream(tmp_path / "thesis.tex")


def test_a_method_without_posteriors(tmp_path):
    with pytest.raises(ConfigError, match="made of posteriors"):
        Stream(tmp_path, method=WarmStart())


def test_the_round_must_be_named_where_each_has_its_own_outputs(whole):
    opened = again(whole)
    if opened.identity.heads is Heads.SHARED:
        assert opened.label_names() == ("bad", "good", "fair")
        return
    with pytest.raises(ConfigError, match="Rounds: 'first', 'second', 'third'"):
        opened.predict(ROUNDS[0].test)
    assert opened.label_names("second") == GOOD_FAIR
    with pytest.raises(ModelError, match=r"6 outputs a row.*fitted on 2.*data, round_name"):
        opened.bayes.predict_loader(
            opened._last().learner.loader("third", ROUNDS[2].test), progress=False
        )


# ------------------------------------------------------------------ damage


@pytest.fixture
def learnt(tmp_path):
    start(tmp_path).run((ROUNDS[0], EMPTY))
    return tmp_path


def test_a_round_missing_in_between(learnt):
    (learnt / "round-001-first" / LINEAGE_FILE).unlink()
    with pytest.raises(CheckpointError, match="no file"):
        again(learnt).run(ROUNDS)
    (learnt / "round-001-first").rename(learnt / "elsewhere")
    with pytest.raises(CheckpointError, match=r"round 2 \(round-002-empty\) but not round 1"):
        again(learnt).run(ROUNDS)


def test_two_rounds_of_one_number(learnt):
    copied = shutil.copytree(learnt / "round-002-empty", learnt / "round-002-other")
    with pytest.raises(CheckpointError, match="two rounds of number 2"):
        again(learnt).run(ROUNDS)
    assert copied.exists()


def test_old_rounds_need_their_lineage_alone(learnt):
    for path in (learnt / "round-001-first").iterdir():
        if path.name != LINEAGE_FILE:
            path.unlink()
    assert again(learnt).learn(ROUNDS[1]).index == 3


def test_a_posterior_fitted_again(learnt):
    path = learnt / "round-002-empty" / "posterior.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="fitted again since"):
        again(learnt).learn(ROUNDS[1])


@pytest.mark.parametrize("change", [{"format": 99}, {"labels": {}}, {"scores": [{"n": 1}]}])
def test_a_damaged_lineage(learnt, change):
    path = learnt / "round-002-empty" / LINEAGE_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lineage\.json"):
        again(learnt)._run(again(learnt).report.rounds)


def test_a_stream_file_of_another_version(learnt):
    path = learnt / STREAM_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "format": 99}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="Upgrade"):
        again(learnt)
    path.write_text(json.dumps({**content, "method": {"type": "Mine"}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'Mine'.*method=\.\.\."):
        again(learnt)
