"""Texts to write: prompts and responses read, tokenised, fitted and predicted from a shell."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from posthoc_bhpeft import BayesianPeft, Prediction, Tangent, Tokens, generate_with_uncertainty
from posthoc_bhpeft.cli.written import likelihoods
from posthoc_bhpeft.data import (
    TextData,
    encode,
    encode_responses,
    encode_translations,
    load_rows,
    make_loader,
)
from posthoc_bhpeft.data.responses import tells_responses
from posthoc_bhpeft.errors import DataError
from tests.cli.tools import ok, refused
from tests.tasks.words import foreign_checkpoint, make_base, tokenizer, write_rows

START, PAD, END = 0, 1, 2
HOT, COLD = ("fire", "sun"), ("ice", "snow", "stone")
SPECIAL = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}


def make_rows(count: int) -> list[dict[str, Any]]:
    """Prompts and completions of different lengths."""
    rows = []
    for n in range(count):
        kind, names = (("hot", HOT), ("cold", COLD))[n % 2]
        longer = "Question : " * (n % 3)
        rows.append(
            {
                "prompt": f"{longer}which is {kind} ?",
                "completion": " " + " ".join(names[: 1 + n % len(names)]),
                "topic": kind,
            }
        )
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 7)):
        write_rows(tmp_path / "data" / f"{split}.jsonl", make_rows(count))
    return tmp_path / "data"


@pytest.fixture
def rows(data: Path) -> TextData:
    return load_rows(data, "train", responses=True)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_prompts_and_responses_are_found(rows: TextData) -> None:
    assert rows.texts[0] == "which is hot ?"
    assert rows.labels is not None
    assert rows.labels[:2] == (" fire", " ice snow")
    assert rows.written
    assert not rows.multi_label
    assert rows.columns.keys() == {"topic"}
    assert rows.notes == ("prompts from 'prompt', responses from 'completion'",)
    rest, part = rows.split_off(0.2, seed=0)
    assert (len(rest), len(part)) == (8, 2)


def test_rows_without_a_response(tmp_path: Path) -> None:
    some = write_rows(
        tmp_path / "some.jsonl",
        [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": None}],
    )
    with pytest.raises(DataError, match=r"1 of 2 rows have no label \(first: row 1\)"):
        load_rows(some, responses=True)
    assert load_rows(some, responses=True, drop_unlabelled=True).texts == ("a",)
    assert load_rows(some, responses=True, ignore_labels=True).labels is None
    none = write_rows(tmp_path / "none.jsonl", [{"question": "a"}, {"question": "c"}])
    assert load_rows(none, responses=True).labels is None


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "chats": ({"messages": [{"role": "user"}], "answer": "a"}, {}, "apply_chat_template"),
    "two parts": ({"instruction": "a", "input": "b", "output": "c"}, {}, "column of its own"),
    "no prompt": ({"a": "b", "response": "c"}, {}, "cannot tell which column holds the prompts"),
    "a number": ({"prompt": "a", "output": 3}, {}, "row 0 has 3 for a text"),
    "another column": ({"prompt": "a"}, {"response_column": "b"}, "there is no column 'b'"),
    "a label": ({"prompt": "a", "output": "c"}, {"label_column": "output"}, "Leave out --label"),
    "a pair": ({"prompt": "a", "output": "c"}, {"text_pair_column": "output"}, "Leave out --label"),
    "chats in capitals": ({"Messages": [{"role": "user"}]}, {}, "apply_chat_template"),
    "an empty prompt": ({"prompt": " ", "output": "c"}, {}, "row 0 has ' ' for a text"),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    row, settings, message = BAD[name]
    place = write_rows(tmp_path / "rows.jsonl", [row, row])
    with pytest.raises(DataError, match=message):
        load_rows(place, responses=True, **settings)


@pytest.mark.parametrize(
    ("columns", "label", "tells"),
    [
        (["prompt", "completion", "topic"], None, True),
        (["prompt", "completion", "topic"], "topic", False),
        (["question", "answer"], None, True),
        (["question", "answer", "label"], None, False),
        (["question", "choices", "response"], None, False),
        (["messages"], None, True),
        (["text"], None, False),
    ],
)
def test_which_rows_are_texts_to_write(columns: list[str], label: str | None, tells: bool) -> None:
    assert tells_responses(columns, label) is tells


def test_columns_may_be_named(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "b", "asked": "a b", "told": "c"}
    place = write_rows(tmp_path / "rows.jsonl", [row])
    found = load_rows(place, responses=True, text_column="asked", response_column="told")
    assert (found.texts, found.labels) == (("a b",), ("c",))


def test_only_the_response_and_the_end_are_labelled(rows: TextData) -> None:
    words = tokenizer()
    for n, row in enumerate(encode_responses(rows, words).features):
        prompt, response = rows.texts[n], (rows.labels or ())[n]
        ids = words(prompt + response, add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == [*ids, END]
        count = len(words(response, add_special_tokens=False)["input_ids"]) + 1
        assert row["labels"] == [-100] * (len(ids) + 1 - count) + row["input_ids"][-count:]


def test_a_long_text_keeps_its_mark_and_its_response() -> None:
    words = tokenizer()
    # As Llama's do, a mark of a beginning is put before every text.
    words.add_bos_token = True
    data = TextData(("which " * 20,), labels=("hot cold ice",))
    row = encode_responses(data, words, max_length=8).features[0]
    marked = [START] if words("which")["input_ids"][:1] == [START] else []
    prompt = marked + [words.convert_tokens_to_ids("which")] * (4 - len(marked))
    response = [*words.convert_tokens_to_ids(["hot", "cold", "ice"]), END]
    assert row["input_ids"] == prompt + response
    assert row["labels"] == [-100] * 4 + response
    longer = replace(data, labels=("hot " * 20,))
    row = encode_responses(longer, words, max_length=8).features[0]
    assert len(row["input_ids"]) == 8
    assert row["labels"].count(-100) == 4


def test_prompts_alone(rows: TextData) -> None:
    words = tokenizer()
    bare = replace(rows, labels=None)
    for encoded in (encode_responses(bare, words), encode_translations(bare, words)):
        assert all("labels" not in row for row in encoded.features)
        assert len(encoded) == len(rows)


def test_texts_are_no_classes(rows: TextData) -> None:
    with pytest.raises(DataError, match="encode_responses"):
        encode(rows, tokenizer())
    with pytest.raises(DataError, match="responses=True"):
        encode_responses(TextData(("a",), labels=(1,), label_names=("x", "y")), tokenizer())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_batches_of_an_encoder_decoder_are_those_of_transformers(
    family: str, rows: TextData, tmp_path: Path
) -> None:
    words = tokenizer()
    base = make_base(tmp_path / "base", "AutoModelForSeq2SeqLM", family, **SPECIAL)
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    encoded = encode_translations(rows, words, decoder_start=PAD)
    batch = next(iter(make_loader(encoded, words, batch_size=10)))
    expected = DataCollatorForSeq2Seq(words, model=model)(
        [dict(encoded[n]) for n in range(10)], return_tensors="pt"
    )
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name]), name


CHECKPOINTS = {
    "decoder": ("AutoModelForCausalLM", "llama", "CAUSAL_LM", ("q_proj", "v_proj")),
    "encoder-decoder": ("AutoModelForSeq2SeqLM", "bart", "SEQ_2_SEQ_LM", ("q_proj", "v_proj")),
}
TASKS = {
    "decoder": "task: a language model that writes a text after a prompt",
    "encoder-decoder": "task: an encoder-decoder that makes one text of another",
}


def checkpoint_of(kind: str, folder: Path) -> Path:
    auto, family, task_type, targets = CHECKPOINTS[kind]
    config = LoraConfig(task_type=task_type, r=2, target_modules=list(targets))
    special = SPECIAL if kind == "encoder-decoder" else {"pad_token_id": PAD, "eos_token_id": END}
    return foreign_checkpoint(folder / "a", auto, family, config, **special)


def batches(kind: str, rows: TextData) -> list[dict[str, Tensor]]:
    """A batch a row, without padding."""
    words = tokenizer()
    if kind == "decoder":
        return list(make_loader(encode_responses(rows, words), words, batch_size=1))
    encoded = encode_translations(rows, words, decoder_start=PAD)
    return list(make_loader(encoded, words, batch_size=1))


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_fitted_and_written_from_a_shell(kind: str, data: Path, tmp_path: Path) -> None:
    adapter = checkpoint_of(kind, tmp_path)
    out, preds = tmp_path / "fitted", tmp_path / "preds"
    said = ok("fit", adapter, "--data", data, "--output", out)
    assert said["task"] == TASKS[kind]
    options = ("--batch-size", 3, "--max-new-tokens", 4)
    about = ok("predict", out, "--data", data, "--output", preds, *options)
    bayes = BayesianPeft.from_pretrained(out)
    assert bayes.likelihood == Tokens(shift=kind == "decoder")
    rows = load_rows(data, "test", responses=True)
    assert rows.labels is not None
    found, words = lines(preds), tokenizer()
    assert [row["label"] for row in found] == list(rows.labels)
    trained, counts = [], []
    for n, batch in enumerate(batches(kind, rows)):
        prompt = words(rows.texts[n], add_special_tokens=False, return_tensors="pt")
        given = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        alone = generate_with_uncertainty(
            bayes, given, max_new_tokens=4, do_sample=False, pad_token_id=PAD
        )
        ids = alone.tokens[0][alone.mask[0]].tolist()
        assert found[n]["tokens"] == words.convert_ids_to_tokens(ids)
        assert found[n]["text"] == words.decode(ids, skip_special_tokens=True)
        expected = alone.epistemic[0][alone.mask[0]]
        written = torch.tensor(found[n]["token_epistemic"])
        # Padding changes the last digits, of which little is left in a difference of entropies.
        torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-2)
        assert found[n]["epistemic"] == pytest.approx(float(written.mean()), abs=1e-6)
        said_by_posterior = bayes.predict(batch).at_positions()
        assert said_by_posterior.probabilities is not None
        assert said_by_posterior.labels is not None
        chosen = said_by_posterior.probabilities.gather(1, said_by_posterior.labels[:, None])
        assert found[n]["nll"] == pytest.approx(-float(chosen.log().mean()), rel=1e-4)
        labels = batch.pop("labels")
        logits = bayes.model(**batch).logits
        if kind == "decoder":
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")
        counts.append(int((labels != -100).sum()))
        trained.append(float(loss.sum().detach()))
        assert found[n]["response_tokens"] == counts[-1]
        assert found[n]["nll_trained_weights"] == pytest.approx(trained[-1] / counts[-1], rel=1e-4)
    metrics = about["metrics"]
    assert metrics["rows"] == 7
    assert metrics["nll_trained_weights"] == pytest.approx(sum(trained) / sum(counts), rel=1e-4)
    assert metrics["tokens_written"] == sum(len(row["tokens"]) for row in found)
    mean = sum(row["nll"] * row["response_tokens"] for row in found) / sum(counts)
    assert metrics["nll"] == pytest.approx(mean, rel=1e-5)
    assert 0 <= metrics["exact"] <= 1
    assert isinstance(bayes.predictive, Tangent)


def test_a_response_is_judged_by_the_posterior_and_by_the_weights() -> None:
    logits = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [5.0, 0.0]]])
    probabilities = torch.tensor([[[0.25, 0.75], [0.6, 0.4], [0.9, 0.1]]])
    nothing = torch.zeros(1, 3)
    labels = torch.tensor([[1, 1, -100]])
    (found,) = likelihoods(
        Prediction(logits, probabilities, None, nothing, nothing, nothing, labels=labels)
    )
    trained = -(logits.log_softmax(-1)[0, 0, 1] + logits.log_softmax(-1)[0, 1, 1]) / 2
    assert found["response_tokens"] == 2
    assert found["nll"] == pytest.approx(-(math.log(0.75) + math.log(0.4)) / 2, abs=1e-6)
    assert found["nll_trained_weights"] == pytest.approx(float(trained), abs=1e-6)


def test_prompts_without_responses_are_answered(data: Path, tmp_path: Path) -> None:
    adapter = checkpoint_of("decoder", tmp_path)
    out, preds = tmp_path / "fitted", tmp_path / "preds"
    ok("fit", adapter, "--data", data, "--output", out)
    new = write_rows(tmp_path / "new.jsonl", [{"prompt": "which is hot ?"}])
    options = ("--predictive", "sampled", "--max-new-tokens", 4)
    about = ok("predict", out, "--data", new, "--output", preds, *options)
    assert about["metrics"].keys() == {"rows", "tokens_written", "epistemic"}
    assert "label" not in lines(preds)[0]


def test_a_long_prompt_leaves_room_for_what_is_written(data: Path, tmp_path: Path) -> None:
    """The model has 64 positions."""
    adapter = checkpoint_of("decoder", tmp_path)
    out, preds = tmp_path / "fitted", tmp_path / "preds"
    ok("fit", adapter, "--data", data, "--output", out)
    new = write_rows(tmp_path / "new.jsonl", [{"prompt": "which is hot ? " * 30}])
    asked = ("predict", out, "--data", new, "--output", preds, "--max-new-tokens")
    ok(*asked, 50)
    assert 1 <= len(lines(preds)[0]["tokens"]) <= 50
    assert "the model has 64 positions. Ask for 32" in refused(*asked, 61, "--overwrite")


def test_what_is_for_classes_is_refused(data: Path, tmp_path: Path) -> None:
    adapter, out = checkpoint_of("decoder", tmp_path), tmp_path / "fitted"
    ok("fit", adapter, "--data", data, "--response-column", "completion", "--output", out)
    asked = ("predict", out, "--data", data, "--output", tmp_path / "preds")
    assert "--review sends a row to a human" in refused(*asked, "--review")
    assert "NLL of the trained weights" in refused(*asked, "--predictive", "map")
    assert "leave --link out" in refused(*asked, "--link", "probit")
    assert "--response-column. Leave out --label-column" in refused(
        *asked, "--label-column", "completion"
    )
    told = ("fit", adapter, "--data", data, "--output", tmp_path / "again")
    for column in ("--label-column", "--text-pair-column"):
        message = refused(*told, column, "topic", "--response-column", "completion")
        assert "--response-column. Leave out --label-column" in message
    assert "Leave out --label-column" in refused(*told, "--text-pair-column", "topic")
    assert "which text is right" in refused("audit", out, "--data", data)
    assert "reads one text and writes another" in refused(
        "estimate", checkpoint_of("encoder-decoder", tmp_path / "b")
    )
    ok("estimate", out)


def test_a_classifier_writes_nothing(data: Path, tmp_path: Path) -> None:
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    adapter = foreign_checkpoint(
        tmp_path / "c", "AutoModelForSequenceClassification", "bert", config
    )
    message = refused("fit", adapter, "--data", data, "--response-column", "completion")
    assert "was not trained to write texts" in message
    asked = ("predict", adapter, "--data", data, "--output", tmp_path / "p", "--predictive", "map")
    assert "is for language models that write" in refused(*asked, "--max-new-tokens", 3)


def test_a_language_model_still_answers_where_rows_have_classes(tmp_path: Path) -> None:
    adapter = checkpoint_of("decoder", tmp_path)
    rows = [{"question": f"which is {n} ?", "label": n % 2, "answer": "hot"} for n in range(6)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    said = ok("fit", adapter, "--data", data)
    assert said["task"] == "task: a language model that answers with the letter of a choice"
