"""Parts that a base's files do not have are trained and saved, or refused: never drawn anew."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertTokenizer

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.checkpoints import load_adapter, load_base, new_tensors
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.selection import FixedPrecision
from posthoc_bhpeft.training import TrainingSettings, building
from posthoc_bhpeft.training.building import build
from posthoc_bhpeft.training.drawn import drawn_modules
from tests.cli.tools import TINY, ok
from tests.hybrid.families import VOCABULARY
from tests.tasks.tiny import base_folder, outputs, questions
from tests.texts import make_base, make_rows, write_jsonl

SETTINGS = TrainingSettings(rank=2, bottleneck_size=3, num_virtual_tokens=3)
LABELS = ("a", "b", "c")
TEXTS = {"input_ids": torch.arange(5, 17).reshape(2, 6), "labels": torch.tensor([0, 1])}


def masked(family: str) -> Path:
    """A base saved as masked language models are: without a pooler."""
    return _with_words(base_folder("AutoModelForMaskedLM", family))


def _with_words(folder: Path) -> Path:
    """The same folder with a tokenizer, which is looked for but not needed here."""
    if not (folder / "vocab.txt").is_file():
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(VOCABULARY - 4))]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        BertTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    return folder


SEQ = {"task_type": "SEQ_CLS"}
CASES = {
    **{family: (family, None) for family in ("bert", "albert", "roberta", "distilbert")},
    "deberta_v2": ("deberta_v2", replace(SETTINGS, peft="lora").peft_config()),
    "lora of peft": ("bert", LoraConfig(**SEQ, r=2)),
    "prompt of peft": ("bert", PromptTuningConfig(**SEQ, num_virtual_tokens=3)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_classifier_on_a_masked_language_model_is_found_again(name: str, tmp_path: Path) -> None:
    family, config = CASES[name]
    model, _ = build(str(masked(family)), LABELS, SETTINGS, copy.deepcopy(config))
    model.eval().save_pretrained(tmp_path)
    expected = outputs(model, TEXTS)
    assert torch.equal(outputs(load_adapter(tmp_path, label_names=LABELS), TEXTS), expected)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "electra"])
def test_multiple_choice_on_a_masked_language_model_is_found_again(
    family: str, tmp_path: Path
) -> None:
    model, _ = build(str(masked(family)), None, SETTINGS, None, Form.CHOICES)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("classifier.modules_to_save" in name for name in trained)
    model.eval().save_pretrained(tmp_path)
    batch = questions()
    again = load_adapter(tmp_path, architecture="AutoModelForMultipleChoice")
    assert torch.equal(outputs(again, batch), outputs(model, batch))


def test_choices_on_a_base_with_a_head_for_classes(tmp_path: Path) -> None:
    folder = base_folder("AutoModelForSequenceClassification", "bert", num_labels=3)
    model, _ = build(str(_with_words(folder)), None, SETTINGS, None, Form.CHOICES)
    model.eval().save_pretrained(tmp_path)
    again = load_adapter(tmp_path, architecture="AutoModelForMultipleChoice")
    assert torch.equal(outputs(again, questions()), outputs(model, questions()))


def test_a_language_model_without_output_layer_is_refused(tmp_path: Path) -> None:
    folder = _with_words(base_folder("AutoModel", "llama", tie_word_embeddings=False))
    with pytest.raises(ConfigError, match=r"have no 'lm_head\.weight'"):
        build(str(folder), None, SETTINGS, None, Form.PROMPT)


def test_what_is_drawn_is_told_by_its_outermost_modules() -> None:
    base = load_base(masked("bert"), label_names=LABELS)
    assert sorted(drawn_modules(base)) == ["bert.pooler", "classifier"]
    assert new_tensors(base) == {
        f"{module}.{inside}"
        for module in ("bert.pooler.dense", "classifier")
        for inside in ("weight", "bias")
    }
    whole = base_folder("AutoModelForSequenceClassification", "bert", num_labels=3)
    assert new_tensors(load_base(whole, label_names=LABELS)) == frozenset()
    # A head for other classes is drawn too.
    four = load_base(whole, label_names=(*LABELS, "d"))
    assert drawn_modules(four) == ["classifier"]


def test_a_tensor_that_is_missing_alone_is_refused_before_training(tmp_path: Path) -> None:
    folder = base_folder("AutoModelForSequenceClassification", "bert", num_labels=3)
    shutil.copytree(_with_words(folder), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "bert.encoder.layer.0.output.dense.bias"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"have no '{lost}' \(1 tensors"):
        build(str(tmp_path), LABELS, SETTINGS, None)


def test_a_checkpoint_of_others_without_a_drawn_part_is_refused(tmp_path: Path) -> None:
    folder = masked("bert")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 tensors, first 'bert\.pooler\.dense\.bias'"):
        load_adapter(tmp_path, label_names=LABELS)


def test_training_says_what_predictions_say(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("validation", 2)):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", make_rows(24, seed))
    base, out = make_base(tmp_path / "base", kind="BertForMaskedLM"), tmp_path / "out"
    options = (*TINY, "--epochs", "2", "--max-length", "16")
    said = ok("train", "--model", base, "--data", tmp_path / "data", "--output", out, *options)
    found = ok(
        *("predict", out, "--split", "validation"),
        *("--predictive", "map", "--output", tmp_path / "map"),
    )
    assert found["metrics"]["nll"] == pytest.approx(said["metrics"]["nll"], abs=1e-5)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_is_drawn_stays_in_full_where_the_base_is_quantised(bits: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, quantize=bits)
    model, _ = build(str(masked("bert")), LABELS, settings, None)
    pooler = model.base_model.model.bert.pooler.modules_to_save["default"]
    assert type(pooler.dense) is nn.Linear
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("pooler" in name for name in trained)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
    batches = [TEXTS]
    bayes = bayesianize(model.eval(), batches, prior=FixedPrecision(2.0), progress=False)
    expected = bayes.predict(TEXTS).probabilities
    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path).predict(TEXTS).probabilities
    assert torch.allclose(again, expected, atol=1e-5)


@pytest.mark.parametrize(("base", "times"), [("whole", 1), ("masked", 2)])
def test_a_quantised_base_is_loaded_again_only_for_parts_that_are_no_head(
    base: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, **options: object) -> nn.Module:
        loaded.append(name)
        return load_base(name, **options)

    monkeypatch.setattr(building, "load_base", load)
    whole = _with_words(base_folder("AutoModel", "bert"))
    folder = whole if base == "whole" else masked("bert")
    build(str(folder), LABELS, replace(SETTINGS, quantize="8bit"), None)
    assert len(loaded) == times
