"""Reading rows: every kind of file, columns and labels found, draws that can be repeated."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace

import pytest
import torch

from posthoc_bhpeft.data import RowSettings, choose_rows, encode, load_rows, make_loader
from posthoc_bhpeft.data.rows import TextData, shuffled
from posthoc_bhpeft.errors import ConfigError, DataError
from tests.texts import make_base, make_folder, make_rows, write_jsonl

ROWS = [
    {"text": "the meal was fine", "label": 1},
    {"text": "late and rude", "label": 0},
    {"text": "kind, quick", "label": 1},
]


def read(tmp_path, rows, **options):
    return load_rows(write_jsonl(tmp_path / "rows.jsonl", rows), **options)


def labelled(*labels):
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


# ------------------------------------------------------------------------------ kinds of sources


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path):
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(path))


def write_gzip(path):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


WRITERS = {
    "rows.jsonl": lambda path: write_jsonl(path, ROWS),
    "rows.jsonl.gz": write_gzip,
    "rows.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "rows.csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    data = load_rows(tmp_path / name)
    assert data.texts == tuple(row["text"] for row in ROWS)
    assert data.labels == (1, 0, 1)
    assert data.digest == read(tmp_path, ROWS).digest


def test_a_folder_has_its_splits_and_label_names(tmp_path):
    data = load_rows(make_folder(tmp_path), "validation")
    assert len(data) == 24
    assert data.label_names == ("bad", "good")
    assert set(data.columns) == {"shop"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nothing.csv", "No file or folder"),
        ("rows.xlsx", "Supported: .csv"),
        ("empty.jsonl", "is empty"),
        ("hollow", "holds no rows"),
        ("some/repository", "the hub says"),
    ],
)
def test_a_source_that_cannot_be_read_says_why(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.xlsx").write_text("x", encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match=message):
        load_rows(source)


def test_a_missing_split_names_those_there_are(tmp_path):
    with pytest.raises(DataError, match="It has: train, validation, test"):
        load_rows(make_folder(tmp_path), "dev")


def test_a_single_file_has_no_other_split(tmp_path):
    with pytest.raises(DataError, match="single file"):
        read(tmp_path, ROWS, split="test")


# --------------------------------------------------------------------------------------- columns


def test_usual_names_are_found_whatever_their_case(tmp_path):
    data = read(tmp_path, [{"Review": "good", "Stars": 1}, {"Review": "bad", "Stars": 0}])
    assert (data.texts, data.labels) == (("good", "bad"), (1, 0))


def test_a_question_and_its_passage_are_a_pair(tmp_path):
    data = read(tmp_path, [{"question": "q", "passage": "p", "label": n} for n in range(2)])
    assert data.text_pairs == ("p", "p")


def test_the_only_text_there_is_is_taken(tmp_path):
    assert read(tmp_path, [{"blurb": "a", "label": 0}, {"blurb": "b", "label": 1}]).texts[1] == "b"


def test_two_texts_of_unknown_names_ask_for_a_name(tmp_path):
    rows = [{"one": "a", "two": "b", "label": n} for n in range(2)]
    with pytest.raises(DataError, match="--text-column"):
        read(tmp_path, rows)
    assert read(tmp_path, rows, text_column="two").texts == ("b", "b")


def test_a_column_that_is_not_there_lists_the_columns(tmp_path):
    with pytest.raises(DataError, match="text, label"):
        read(tmp_path, ROWS, label_column="mood")


def test_multiple_choice_is_refused(tmp_path):
    with pytest.raises(DataError, match="multiple choice"):
        read(tmp_path, [{"question": "q", "choices": ["a", "b"], "label": n} for n in range(2)])


def test_a_row_without_text_is_named(tmp_path):
    with pytest.raises(DataError, match="row 1 has nothing"):
        read(tmp_path, [{"text": "a", "label": 0}, {"text": None, "label": 1}])


# ---------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("given", "indices", "names"),
    [
        (["no", "yes", "maybe"], (1, 2, 0), ("maybe", "no", "yes")),
        ([1, 5, 3, 2, 4], (0, 4, 2, 1, 3), ("1", "2", "3", "4", "5")),
        ([10, 30, 20], (0, 2, 1), ("10", "20", "30")),
        ([0, 2, 0], (0, 2, 0), ("0", "1", "2")),
        ([True, False], (1, 0), ("false", "true")),
    ],
    ids=["strings sorted", "stars", "codes", "a class unseen", "booleans"],
)
def test_labels_become_indices(tmp_path, given, indices, names):
    data = read(tmp_path, labelled(*given))
    assert (data.labels, data.label_names) == (indices, names)


def test_known_names_decide_the_order(tmp_path):
    data = read(tmp_path, labelled("no", "yes"), label_names=("yes", "no"))
    assert data.labels == (1, 0)


def test_other_names_than_the_known_ones_are_pointed_out(tmp_path):
    folder = make_folder(tmp_path)
    assert not any("CAUTION" in note for note in load_rows(folder).notes)
    data = load_rows(folder, label_names=("no", "yes"))
    assert any("names its classes bad, good" in note for note in data.notes)


def test_a_damaged_file_says_where(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "x"\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 0"):
        load_rows(tmp_path / "rows.jsonl")


def test_floats_are_regression_and_said_so(tmp_path):
    data = read(tmp_path, labelled(0.5, 2.25))
    assert data.regression
    assert data.num_outputs == 1
    assert any("regression" in note for note in data.notes)


def test_whole_floats_are_indices_where_classes_are_known(tmp_path):
    assert read(tmp_path, labelled(0.0, 1.0), regression=False).labels == (0, 1)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([0, 7], {"label_names": ("a", "b")}, "out of range: 7"),
        (["a", "c"], {"label_names": ("a", "b")}, "Unknown label: c"),
        (["a", "a"], {}, "one class"),
        ([[0, 1], [1, 1]], {}, "Bernoulli"),
        ([0.5, 1.0], {"regression": False}, "class indices are expected"),
    ],
)
def test_labels_that_make_no_sense(tmp_path, given, options, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, labelled(*given), **options)


@pytest.mark.parametrize(("hole", "what"), [(-1, "out of scope"), (None, "no label")])
def test_rows_without_a_label_are_an_error_with_ways_out(tmp_path, hole, what):
    rows = labelled(0, hole, 1)
    with pytest.raises(DataError, match=f"{what}.*--drop-unlabelled.*--ignore-labels"):
        read(tmp_path, rows)
    dropped = read(tmp_path, rows, drop_unlabelled=True)
    assert (dropped.labels, dropped.indices) == ((0, 1), (0, 2))
    ignored = read(tmp_path, rows, ignore_labels=True)
    assert ignored.labels is None
    assert len(ignored) == 3


def test_a_split_without_any_label_is_read_without(tmp_path):
    assert read(tmp_path, labelled(None, None)).labels is None


# ----------------------------------------------------------------------------------------- draws


def test_a_smaller_draw_is_the_start_of_a_larger_one():
    data = TextData(tuple(str(n) for n in range(50)))
    assert data.draw(30, seed=1).texts[:10] == data.draw(10, seed=1).texts
    assert data.draw(10, seed=1).texts != data.draw(10, seed=2).texts


def test_the_order_of_a_seed_never_changes():
    # Saved models name their rows by seed, so this very order is a promise.
    assert shuffled(range(8), seed=0) == [3, 7, 5, 2, 4, 1, 6, 0]


def test_drawn_rows_remember_where_they_stood():
    data = TextData(("a", "b", "c", "d"), labels=(0, 1, 0, 1), label_names=("x", "y"))
    drawn = data.draw(2, seed=0)
    assert tuple(data.texts[i] for i in drawn.indices) == drawn.texts


def test_split_off_takes_its_share_of_every_class():
    labels = (0,) * 60 + (1,) * 20
    data = TextData(tuple(map(str, range(80))), labels=labels, label_names=("x", "y"))
    rest, part = data.split_off(0.25, seed=0)
    assert (part.labels.count(0), part.labels.count(1)) == (15, 5)
    assert sorted(rest.indices + part.indices) == list(range(80))


def test_another_label_is_another_digest():
    one = TextData(("a",), labels=(0,), label_names=("x", "y"))
    other = TextData(("a",), labels=(1,), label_names=("x", "y"))
    assert one.digest != other.digest


def test_labels_must_be_as_many_as_texts():
    with pytest.raises(DataError, match="1 entries for 2 texts"):
        TextData(("a", "b"), labels=(0,))


# ------------------------------------------------------------------------------------ chosen rows


def test_the_validation_split_is_used_where_there_is_one(tmp_path):
    chosen = choose_rows(RowSettings(str(make_folder(tmp_path)), max_rows=10))
    assert (len(chosen.train), len(chosen.validation)) == (10, 24)


def test_validation_rows_are_carved_out_and_never_train(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(100))
    chosen = choose_rows(RowSettings(str(path)))
    assert not set(chosen.train.indices) & set(chosen.validation.indices)
    assert len(chosen.train) + len(chosen.validation) == 100
    assert any("no validation split" in note for note in chosen.notes)


def test_the_split_that_trains_does_not_decide_when_to_stop(tmp_path):
    write_jsonl(tmp_path / "validation.jsonl", make_rows(40))
    chosen = choose_rows(RowSettings(str(tmp_path), train_split="validation"))
    assert (len(chosen.train), len(chosen.validation)) == (34, 6)
    assert not set(chosen.train.indices) & set(chosen.validation.indices)
    assert any("no validation split beside 'validation'" in note for note in chosen.notes)


def test_the_same_split_for_both_is_refused(tmp_path):
    folder = str(make_folder(tmp_path))
    settings = RowSettings(folder, validation_split="train")
    with pytest.raises(
        ConfigError, match=r"'train'.*is to train and to decide.*--validation-split"
    ):
        choose_rows(settings)
    # Where nothing is stopped, nothing is decided.
    assert choose_rows(replace(settings, validation=False)).validation is None


@pytest.mark.parametrize(
    "rows", [labelled("a", "b", "c"), labelled(0.5)], ids=["one of each class", "one row"]
)
def test_too_few_rows_to_keep_some_back_name_the_ways_out(tmp_path, rows):
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"too few rows.*--validation-split.*--no-early-stopping"):
        choose_rows(RowSettings(str(tmp_path)))
    assert len(choose_rows(RowSettings(str(tmp_path), validation=False)).train) == len(rows)


def test_the_same_settings_choose_the_same_rows(tmp_path):
    settings = RowSettings(str(make_folder(tmp_path)), max_rows=12, seed=3)
    assert choose_rows(settings).train.digest == choose_rows(settings).train.digest


def test_validation_labels_follow_the_training_labels(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", labelled("a", "b", "c"))
    write_jsonl(tmp_path / "validation.jsonl", labelled("c", "b"))
    assert choose_rows(RowSettings(str(tmp_path))).validation.labels == (2, 1)


def test_training_rows_need_labels(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match="--label-column"):
        choose_rows(RowSettings(str(tmp_path), validation=False))


def test_too_few_rows_are_refused():
    with pytest.raises(ConfigError, match="max_rows is 1"):
        RowSettings("rows.csv", max_rows=1)


# ---------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from posthoc_bhpeft.checkpoints import load_tokenizer

    return load_tokenizer(make_base(tmp_path_factory.mktemp("base")))


def data_of(count):
    rows = make_rows(count)
    return TextData(
        tuple(str(row["text"]) for row in rows),
        labels=tuple(int(row["label"]) for row in rows),
        label_names=("bad", "good"),
    )


def test_batches_are_padded_to_their_longest_row(tokenizer):
    data = data_of(10)
    lengths = encode(data, tokenizer).lengths
    for number, batch in enumerate(make_loader(data, tokenizer, batch_size=4)):
        assert batch["input_ids"].shape[1] == max(lengths[4 * number : 4 * number + 4])
        assert batch["labels"].dtype == torch.int64


def test_rows_are_cut_at_the_length_given(tokenizer):
    assert max(encode(data_of(20), tokenizer, max_length=6).lengths) == 6


def test_sorting_by_length_saves_padding_and_is_undone(tokenizer):
    data = data_of(30)
    plain = make_loader(data, tokenizer, batch_size=8)
    by_length = make_loader(data, tokenizer, batch_size=8, by_length=True)
    visited = torch.cat([batch["labels"] for batch in by_length])
    assert by_length.sampler.restore(visited).tolist() == list(data.labels)
    assert sum(b["input_ids"].numel() for b in by_length) < sum(
        b["input_ids"].numel() for b in plain
    )


def test_targets_of_a_regression_are_floats(tokenizer):
    data = TextData(("a", "it was"), labels=(0.5, 1.0), regression=True)
    batch = next(iter(make_loader(data, tokenizer)))
    assert batch["labels"].tolist() == [0.5, 1.0]


def test_a_pair_is_tokenised_together(tokenizer):
    data = TextData(("the train",), text_pairs=("was late",))
    assert encode(data, tokenizer).features[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (2, {"shuffle": True, "by_length": True}, "two different orders"),
        (0, {}, "no rows"),
        (2, {"max_length": 2}, "at least 4 tokens"),
    ],
)
def test_batches_that_cannot_be_made(tokenizer, rows, options, message):
    with pytest.raises(DataError, match=message):
        make_loader(data_of(rows), tokenizer, **options)
