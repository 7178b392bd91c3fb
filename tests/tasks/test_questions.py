"""Rows with choices: read, made into prompts and pairs, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posthoc_bhpeft.data import (
    answer_prompt,
    encode_choices,
    encode_prompts,
    load_rows,
    make_loader,
)
from posthoc_bhpeft.data.answers import letters
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.tasks import AnswerTokens
from tests.tasks.words import make_questions, tokenizer, write_rows


def read(tmp_path: Path, rows: list[dict[str, Any]], meta: Any = None, **settings: Any) -> Any:
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    if meta is not None:
        (tmp_path / "rows" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return load_rows(tmp_path / "rows", **settings)


def test_choices_are_read_beside_the_question(tmp_path: Path) -> None:
    rows = make_questions(9)
    data = read(tmp_path, rows, choices=True)
    assert data.texts == tuple(row["question"] for row in rows)
    assert data.choices == tuple(tuple(row["choices"]) for row in rows)
    assert data.labels == tuple(row["label"] for row in rows)
    assert data.label_names == ("A", "B", "C", "D")
    assert data.take([2, 1]).choices == (data.choices[2], data.choices[1])
    other = read(
        tmp_path / "other", [{**row, "choices": row["choices"][::-1]} for row in rows], choices=True
    )
    assert other.digest != data.digest


def test_without_a_column_the_classes_are_the_choices(tmp_path: Path) -> None:
    rows = [{"question": "is it", "passage": "fire", "label": n % 2} for n in range(4)]
    data = read(tmp_path, rows, {"label_names": ["no", "yes"]}, choices=True)
    assert data.choices == (("no", "yes"),) * 4
    assert data.text_pairs == ("fire",) * 4
    assert data.label_names == ("no", "yes")


def test_a_column_of_choices_is_found_where_nobody_says(tmp_path: Path) -> None:
    assert read(tmp_path / "a", make_questions(4), choices=None).choices is not None
    plain = read(tmp_path / "b", [{"text": "ice", "label": n % 2} for n in range(4)], choices=None)
    assert plain.choices is None
    with pytest.raises(DataError, match="one of the choices of a row is right"):
        read(tmp_path / "c", make_questions(4), choices=None, regression=True)


def test_choices_are_not_read_unasked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="load_rows with choices=True"):
        read(tmp_path, make_questions(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["fire"]}, "needs a list of two or more texts"),
        ({"choices": ["fire", ""]}, "needs a list of two or more texts"),
        ({"choices": ["fire", "ice"], "label": 2}, "row 1 has the label 2, and 2 choices"),
    ],
)
def test_choices_that_make_no_sense(tmp_path: Path, change: Any, message: str) -> None:
    rows = make_questions(3, fewest=3)
    with pytest.raises(DataError, match=message):
        read(tmp_path, [rows[0], {**rows[1], **change}, rows[2]], choices=True)


def test_nothing_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing names the classes to choose from"):
        read(tmp_path, [{"text": "ice"}, {"text": "fire"}], choices=True)


def test_the_prompt() -> None:
    prompt = answer_prompt("which is hot ?", ("ice", "fire"))
    assert prompt == "Question: which is hot ?\nA. ice\nB. fire\nAnswer:"
    assert answer_prompt("q", ("a", "b"), "passage").startswith("passage\nQuestion: q\n")


def test_prompts_keep_their_end_and_their_beginning_mark(tmp_path: Path) -> None:
    data, words = read(tmp_path, make_questions(5), choices=True), tokenizer()
    whole, cut = encode_prompts(data, words), encode_prompts(data, words, max_length=10)
    for n, (long, short) in enumerate(zip(whole.features, cut.features, strict=True)):
        assert long["n_choices"] == len(data.choices[n])
        assert long["labels"] == data.labels[n]
        assert len(short["input_ids"]) == len(short["attention_mask"]) == 10
        assert short["input_ids"] == long["input_ids"][-10:]
    marked = BeginningMarked(words)
    for row in encode_prompts(data, marked, max_length=10).features:
        assert row["input_ids"][0] == words.bos_token_id
        assert len(row["input_ids"]) == 10
        assert words.decode(row["input_ids"]).endswith("Answer :")


class BeginningMarked:
    """A tokenizer that marks the beginning and the end of a text, as Llama's and T5's do."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self.inner = inner
        self.bos_token_id = inner.bos_token_id

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self.inner(text)["input_ids"]
        marked = [self.inner.bos_token_id, *ids, self.inner.eos_token_id]
        return {"input_ids": marked if add_special_tokens else ids}


def test_batches_of_prompts(tmp_path: Path) -> None:
    data, words = read(tmp_path, make_questions(5), choices=True), tokenizer()
    for side in ("left", "right"):
        words.padding_side = side
        (batch,) = make_loader(encode_prompts(data, words), words)
        assert batch["n_choices"].tolist() == [len(own) for own in data.choices]
        column = -1 if side == "left" else 0
        assert bool((batch["attention_mask"][:, column] == 1).all())


def test_batches_of_choices(tmp_path: Path) -> None:
    data, words = read(tmp_path, make_questions(6), choices=True), tokenizer()
    loader = make_loader(encode_choices(data, words), words, batch_size=4, by_length=True)
    batches = list(loader)
    assert [tuple(batch["input_ids"].shape[:2]) for batch in batches] == [(4, 4), (2, 4)]
    order = loader.sampler.order
    rows = [
        row
        for batch in batches
        for row in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    for place, (ids, mask) in zip(order, rows, strict=True):
        own = data.choices[place]
        assert mask.any(1).tolist() == [k < len(own) for k in range(4)]
        for k, choice in enumerate(own):
            assert words.decode(ids[k][mask[k].bool()]) == f"{data.texts[place]} {choice}"
    labels = torch.cat([batch["labels"] for batch in batches])
    assert labels.tolist() == [data.labels[place] for place in order]


def test_a_choice_that_leaves_no_room_for_its_question_is_cut_too(tmp_path: Path) -> None:
    rows = make_questions(4)
    rows[2]["choices"] = ["ice " * 40, "fire", "snow ice sun fire"]
    data, words = read(tmp_path, rows, choices=True), tokenizer()
    short = encode_choices(data, words, max_length=8)
    whole = encode_choices(data, words)
    for place in (0, 1, 3):
        assert short.features[place] == whole.features[place]
    texts = [words.decode(ids) for ids in short.features[2]["input_ids"]]
    assert max(map(len, short.features[2]["input_ids"])) == 8
    assert texts[0].startswith("which is")
    assert texts[0].endswith("ice ice")
    assert texts[1] == f"{data.texts[2]} fire"


@pytest.mark.parametrize("length", [7, 8, 9, 10])
def test_only_the_question_is_cut_while_something_of_it_stays(tmp_path: Path, length: int) -> None:
    rows = [{"question": "which is hot ?", "choices": ["ice " * 7, "sun"], "label": 0}] * 2
    data, words = read(tmp_path, rows, choices=True), tokenizer()
    ids = encode_choices(data, words, max_length=length).features[0]["input_ids"][0]
    whole = words.convert_tokens_to_ids(["which", "is", "hot", "?"])
    assert len(ids) == length
    question = sum(one in whole for one in ids)
    assert question == (length - 7 if length > 7 else 3)


@pytest.mark.parametrize("make", [encode_prompts, encode_choices])
def test_so_few_tokens_hold_no_choices(tmp_path: Path, make: Any) -> None:
    with pytest.raises(DataError, match="at least 4 tokens"):
        make(read(tmp_path, make_questions(3), choices=True), tokenizer(), max_length=3)


@pytest.mark.parametrize("make", [encode_prompts, encode_choices])
def test_rows_without_choices_are_refused(tmp_path: Path, make: Any) -> None:
    rows = read(tmp_path, [{"text": "ice", "label": n % 2} for n in range(2)])
    with pytest.raises(DataError, match="choices=True"):
        make(rows, tokenizer())


def test_there_are_letters_for_so_many() -> None:
    assert letters(3) == ("A", "B", "C")
    with pytest.raises(DataError, match="27 choices"):
        letters(27)


def pieces(*vocabulary: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters and the merged pieces given; a space is part of a word."""
    base = ["<unk>", *sorted({c for word in vocabulary for c in word} | set("Answer:▁"))]
    merges, known = [], list(base)
    for word in vocabulary:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                merges.append((word[: end - 1], word[end - 1]))
                known.append(word[:end])
    inner = Tokenizer(models.BPE({w: n for n, w in enumerate(known)}, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_a_letter_with_its_space_or_without() -> None:
    with_space, without = pieces("▁A", "▁B", "A", "B"), pieces("A", "B")
    assert AnswerTokens.of(with_space, (" A", " B")).token_ids == tuple(
        with_space.convert_tokens_to_ids(["▁A", "▁B"])
    )
    assert AnswerTokens.of(without, ("A", "B")).choices == ("A", "B")
    with pytest.raises(ConfigError, match=r"' A' is 2 tokens there, .*'A' is one token: use that"):
        AnswerTokens.of(without, (" A", " B"))
    with pytest.raises(ConfigError, match=r"'AB' is 2 tokens there, \['A', 'B'\]\. Letters or"):
        AnswerTokens.of(without, ("AB", "B"))


def test_a_choice_that_merges_with_the_prompt() -> None:
    merging = pieces(":A", "A", "B", "▁A")
    with pytest.raises(
        ConfigError, match=r"'A' changes the tokens of 'Answer:' itself.*' A' is one"
    ):
        AnswerTokens.of(merging, ("A", "B"))
