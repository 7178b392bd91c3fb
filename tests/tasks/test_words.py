"""Rows of words with a label for each: read, cut into pieces, padded, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.data import RowSettings, choose_rows, encode_words, load_rows, make_loader
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.tasks.tagged import make_base, make_rows
from tests.tasks.words import make_questions, write_rows

TWO = [
    {"tokens": ["the", "meal"], "tags": ["x", "y"]},
    {"tokens": ["late"], "tags": ["y"]},
]


def read(tmp_path: Path, rows: list[dict[str, Any]], meta: Any = None, **settings: Any) -> Any:
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    if meta is not None:
        (tmp_path / "rows" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return load_rows(tmp_path / "rows", **{"words": True, **settings})


# ----------------------------------------------------------------------------------------- reading


def test_words_and_their_labels(tmp_path: Path) -> None:
    rows = make_rows(9)
    data = read(tmp_path, rows)
    assert data.words == tuple(tuple(row["tokens"]) for row in rows)
    assert data.texts == tuple(" ".join(row["tokens"]) for row in rows)
    assert data.label_names == ("bad", "good", "none")
    named = tuple(tuple(data.label_names[one] for one in own) for own in data.labels)
    assert named == tuple(tuple(row["ner_tags"]) for row in rows)
    assert not data.multi_label
    assert data.num_outputs == 3
    assert set(data.columns) == {"shop"}
    assert data.notes[0] == "words from 'tokens', a label for each from 'ner_tags'"
    few = data.take([4, 2])
    assert (few.words, few.labels) == (
        (data.words[4], data.words[2]),
        (data.labels[4], data.labels[2]),
    )


def test_numbers_take_their_names_from_beside_the_data(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": [1, 0]}, {"tokens": ["c"], "tags": [1]}]
    assert read(tmp_path, rows, {"label_names": ["O", "X"]}).label_names == ("O", "X")
    data = read(tmp_path / "bare", rows)
    assert (data.labels, data.label_names) == (((1, 0), (1,)), ("0", "1"))


def test_numbers_take_their_names_from_a_class_label(tmp_path: Path) -> None:
    import datasets

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B", "I"]))
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags}
    )
    rows = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[2, -100], [1]]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "hub"))
    data = load_rows(tmp_path / "hub", words=None)
    assert (data.labels, data.label_names) == (((2, IGNORED), (1,)), ("O", "B", "I"))
    again = load_rows(tmp_path / "hub", words=True, label_names=("B", "I", "O"))
    assert again.labels == ((1, IGNORED), (0,))


@pytest.mark.parametrize("unknown", [None, -1, -100])
def test_a_word_without_a_label_is_not_judged(tmp_path: Path, unknown: Any) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": [1, unknown, 0]}]
    data = read(tmp_path, rows)
    assert data.labels == ((1, IGNORED, 0),)
    assert data.label_names == ("0", "1")
    assert "1 words have no label" in data.notes


def test_words_are_found_where_nobody_says(tmp_path: Path) -> None:
    assert read(tmp_path / "a", TWO, words=None).words is not None
    text = [{"text": "a", "tokens": ["a"], "label": n} for n in range(2)]
    assert read(tmp_path / "b", text, words=None).words is None
    ids = [{"text": "a", "tokens": [4, 5], "labels": [0, 1]}] * 2
    assert read(tmp_path / "c", ids, words=None, multi_label=None).words is None
    questions = make_questions(4)
    assert read(tmp_path / "d", questions, words=None, choices=None).choices is not None


def test_without_labels_words_are_there_to_be_predicted(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"]}, {"words": ["c"]}]
    assert read(tmp_path / "a", rows).labels is None
    assert read(tmp_path / "b", TWO, ignore_labels=True).labels is None
    # The same text cut in another way is another row.
    one = read(tmp_path / "c", [{"words": ["a b"]}, {"words": ["c"]}])
    assert one.digest != read(tmp_path / "d", rows).digest


def test_columns_may_be_named(tmp_path: Path) -> None:
    rows = [{"a": ["x"], "b": [0], "tags": [1], "tokens": ["y"]}] * 2
    data = read(tmp_path, rows, text_column="a", label_column="b", one_class=True)
    assert (data.words[0], data.labels[0]) == (("x",), (0,))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"tokens": ["a", "b"], "tags": [0]}], {}, "row 0 has 2 words and 1 labels; each word"),
        ([*TWO, {"tokens": [], "tags": []}], {}, "row 2 has .* list of one word or more"),
        ([{"tokens": "a b", "tags": [0]}], {"text_column": "tokens"}, "cut into words first"),
        (
            [{"text": "a", "tags": [0]}],
            {},
            "cannot tell .* holds the words.*: text, tags",
        ),
        (TWO, {"label_column": "mood"}, "no column 'mood'.*: tokens, tags"),
        (TWO, {"text_column": "mood"}, "no column 'mood'"),
        (TWO, {"regression": True}, "leave out --regression"),
        (TWO, {"choices": True}, "leave out --task choices"),
        (TWO, {"text_pair_column": "tags"}, "leave out --text-pair-column"),
        ([{"tokens": ["a"], "tags": [-100]}], {}, "no word has a label"),
        ([{"tokens": ["a"], "tags": [3]}], {"label_names": ("O", "X")}, "labels of words: .*range"),
        (TWO, {"label_names": ("x", "z")}, "labels of words: Unknown label: y"),
        ([*TWO, {"tokens": ["a"], "tags": None}], {}, "1 of 3 rows have no label.*--drop-unlab"),
    ],
)
def test_what_makes_no_sense_is_said(
    tmp_path: Path, rows: Any, settings: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, rows, **settings)


def test_rows_without_labels_may_be_dropped(tmp_path: Path) -> None:
    rows = [TWO[0], {"tokens": ["a"], "tags": None}, TWO[1]]
    data = read(tmp_path, rows, drop_unlabelled=True)
    assert data.indices == (0, 2)
    assert data.words == (("the", "meal"), ("late",))
    assert "1 rows without labels dropped" in data.notes


def test_readers_of_texts_say_the_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--task words"):
        read(tmp_path, TWO, words=False)
    with pytest.raises(DataError, match="encode_words"):
        make_loader(read(tmp_path / "a", TWO), None)  # type: ignore[arg-type]


def test_both_parts_of_a_training_are_words(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(40))
    chosen = choose_rows(RowSettings(str(tmp_path), words=None))
    assert chosen.validation is not None
    assert len(chosen.train) + len(chosen.validation) == 40
    write_rows(tmp_path / "validation.jsonl", make_rows(5, 1))
    chosen = choose_rows(RowSettings(str(tmp_path), words=None))
    assert chosen.validation is not None
    assert chosen.validation.words is not None
    assert chosen.validation.label_names == ("bad", "good", "none")


# ------------------------------------------------------------------------------------------ pieces


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(make_base(tmp_path_factory.mktemp("base")))


def by_hand(words: list[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of a text, and where each word begins: word after word."""
    ids, places = [tokenizer.cls_token_id], []
    for word in words:
        places.append(len(ids))
        ids += tokenizer(word, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.sep_token_id], places


def test_a_label_stands_at_the_first_piece_of_its_word(tmp_path: Path, tokenizer: Any) -> None:
    rows = make_rows(12)
    data = read(tmp_path, rows)
    encoded = encode_words(data, tokenizer)
    several = 0
    for row, feature, places, labels in zip(
        rows, encoded.features, encoded.places or (), data.labels, strict=True
    ):
        ids, expected = by_hand(row["tokens"], tokenizer)
        assert feature["input_ids"] == ids
        assert list(places) == expected
        assert [feature["labels"][place] for place in expected] == list(labels)
        assert sum(one != IGNORED for one in feature["labels"]) == len(labels)
        several += len(ids) - 2 > len(labels)
    assert several


def test_words_that_are_cut_off_have_no_place(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"tokens": ["meals", "late", "rudes"], "tags": [0, 1, 0]}, TWO[1] | {"tags": [1]}]
    encoded = encode_words(read(tmp_path, rows), tokenizer, max_length=5)
    assert encoded.places == ((1, 3, None), (1,))
    assert encoded.features[0]["labels"] == [IGNORED, 0, IGNORED, 1, IGNORED]


def byte_level(**settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer whose pieces carry the space before them, as those of GPT-2 and RoBERTa do."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(**settings)  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=inner.pre_tokenizer.alphabet())  # type: ignore[attr-defined]
    inner.train_from_iterator(["the meal was late", "the meal was fine"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="!")


@pytest.mark.parametrize("prefix", [False, True])
def test_words_become_the_pieces_of_the_whole_text(tmp_path: Path, prefix: bool) -> None:
    tokenizer = byte_level(add_prefix_space=prefix)
    data = read(tmp_path, [{"tokens": ["the", "meal", "was", "late"], "tags": [0, 1, 0, 1]}])
    (row,) = encode_words(data, tokenizer).features
    assert row["input_ids"] == tokenizer("the meal was late")["input_ids"]


def test_places_hold_whatever_side_texts_are_padded_on(tmp_path: Path, tokenizer: Any) -> None:
    data = read(tmp_path, make_rows(5))
    encoded = encode_words(data, tokenizer)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    (batch,) = make_loader(encoded, tokenizer, by_length=True)
    tokenizer.padding_side = side
    order = sorted(range(5), key=lambda n: -encoded.lengths[n])
    for row, n in enumerate(order):
        length = encoded.lengths[n]
        assert batch["input_ids"][row, :length].tolist() == encoded[n]["input_ids"]
        assert batch["labels"][row, :length].tolist() == encoded[n]["labels"]
        assert bool((batch["labels"][row, length:] == IGNORED).all())
        assert int(batch["attention_mask"][row].sum()) == length
    assert batch["labels"].dtype == torch.long


def test_rows_and_tokenizers_that_do_not_do(tmp_path: Path, tokenizer: Any) -> None:
    data = read(tmp_path, TWO)

    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match=r"Slow does not tell which word.*fast tokenizer"):
        encode_words(data, Slow())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 4 tokens"):
        encode_words(data, tokenizer, max_length=3)
    plain = read(tmp_path / "b", [{"text": "a", "label": n} for n in range(2)], words=False)
    with pytest.raises(DataError, match=r"no lists of words.*words=True"):
        encode_words(plain, tokenizer)
