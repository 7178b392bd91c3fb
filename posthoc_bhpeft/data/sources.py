"""Where rows come from: a file, a folder of splits, or a data set on the hub."""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc_bhpeft.data.tables import read_table
from posthoc_bhpeft.errors import DataError

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_NOT_ROWS = {"meta.json", "dataset_info.json", "dataset_dict.json", "state.json"}
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class Source:
    """A place that holds one or more splits.

    Attributes:
        name: the path or hub name as it was given.
        splits: the split names found, in the order train, validation, test, others.
        files: the file of each split; None where `datasets` finds them itself.
        single_file: whether the source is one file, whose only split is called "train".
        label_names: class names from a meta.json beside the files, if there is one.
    """

    name: str
    splits: tuple[str, ...]
    files: dict[str, Path] | None = None
    single_file: bool = False
    label_names: tuple[str, ...] | None = None

    @property
    def validation_split(self) -> str | None:
        """The split meant for validation, whatever its usual name here."""
        return next((name for name in _VALIDATION_NAMES if name in self.splits), None)

    def place(self, split: str) -> str:
        """The source and a split of it, for people; a single file has no split to speak of."""
        return self.name if self.single_file else f"{self.name} ({split})"


def open_source(name: str | Path) -> Source:
    """Look at a source and list its splits; no row is read yet.

    Raises:
        DataError: nothing is there, or nothing in it can be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        _reader(path)
        return Source(str(name), ("train",), {"train": path}, single_file=True)
    if path.is_dir():
        return _open_folder(path)
    if _looks_like_path(str(name)):
        raise DataError(
            f"No file or folder at {str(name)!r}. Give a csv, json, jsonl or parquet file, a "
            "folder with train.jsonl (and validation.jsonl, test.jsonl), or the name of a data set "
            "on the hub."
        )
    return _open_hub(str(name))


def read_split(source: Source, split: str) -> Any:
    """The rows of one split as a `datasets.Dataset`.

    Raises:
        DataError: there is no such split, or its rows cannot be read.
    """
    import datasets

    if split not in source.splits:
        raise DataError(_no_split(source, split))
    try:
        if source.files is not None:
            return _read_file(source.files[split])
        if (Path(source.name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(source.name)[split]
        return datasets.load_dataset(*_hub_parts(source.name), split=split)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; all mean the same here
        # datasets wraps the parser's own words, which tell the line.
        reason = error.__cause__ or error
        raise DataError(f"Could not read the split {split!r} of {source.name}: {reason}") from error


def same_rows(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two places, a source and a split each, hold the same rows under any names.

    A file is the split of its folder, and so is a copy of it. What is gone is known by its name.
    """
    first, second = (_place_of(*place) for place in (one, other))
    if not (isinstance(first, Path) and isinstance(second, Path)):
        return first == second
    return first == second or filecmp.cmp(first, second, shallow=False)


def _place_of(name: str, split: str) -> Path | tuple[str, str]:
    """The file with the rows of a split; else a source and a split, where there is no such file."""
    path = Path(name).expanduser()
    if path.is_dir():
        try:
            file = _files_of_splits(path).get(split)
        except DataError:  # such a folder cannot be read, but it may be recorded
            file = None
        return (str(path.resolve()), split) if file is None else file.resolve()
    return path.resolve() if path.is_file() else (name, split)


def row_files(folder: Path) -> list[Path]:
    """Files of a folder that hold rows, by name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        # Such as ._train.jsonl, which a Mac leaves beside its files.
        and not path.name.startswith(".")
        and path.name not in _NOT_ROWS
        and _suffix(path) in _READERS
    ]


def _open_folder(folder: Path) -> Source:
    files = _files_of_splits(folder)
    if files:
        return Source(str(folder), _ordered(files), files, label_names=declared_names(folder))
    if (folder / "dataset_dict.json").is_file():
        listed = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return Source(str(folder), _ordered(listed), label_names=declared_names(folder))
    try:
        return _open_hub(str(folder))
    except DataError as error:
        raise DataError(
            f"The folder {str(folder)!r} holds no rows. Expected train.jsonl, train.jsonl.gz, "
            "train.csv or train.parquet, and the same for validation and test."
        ) from error


def _files_of_splits(folder: Path) -> dict[str, Path]:
    """The one file of each split.

    Raises:
        DataError: Naming two files of one split, since the rows of one would be left out.
    """
    files: dict[str, Path] = {}
    for path in row_files(folder):
        split = _stem(path)
        if split in files:
            raise DataError(
                f"Two files in {str(folder)!r} are the split {split!r}, as their names say up to "
                f"the first dot: {files[split].name} and {path.name}. Put their rows into one "
                "file, or rename or move one of them."
            )
        files[split] = path
    return files


def _open_hub(name: str) -> Source:
    import datasets

    try:
        return Source(name, _ordered(datasets.get_dataset_split_names(*_hub_parts(name))))
    except Exception as error:  # network, missing name, missing config: the text says which
        raise DataError(
            f"No data set {name!r}: it is no file or folder here, and the hub says: {error} "
            "(a data set with configurations is named NAME:CONFIGURATION)."
        ) from error


def _read_file(path: Path) -> Any:
    import datasets

    if path.stat().st_size == 0:
        raise DataError(f"The file {str(path)!r} is empty.")
    if (reader := _reader(path)) == "csv":
        return read_table(path, "\t" if _suffix(path) == ".tsv" else ",")
    return datasets.load_dataset(reader, data_files={"rows": str(path)}, split="rows")


def _reader(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _READERS:
        raise DataError(
            f"Cannot tell what {str(path)!r} holds from its name. Supported: "
            f"{', '.join(sorted(_READERS))}, each also with .gz."
        )
    return _READERS[suffix]


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _stem(path: Path) -> str:
    return path.name.split(".", 1)[0]


def _ordered(splits: Any) -> tuple[str, ...]:
    usual = ("train", *_VALIDATION_NAMES, "test")
    names = list(splits)
    return tuple(
        [name for name in usual if name in names] + sorted(n for n in names if n not in usual)
    )


def declared_names(folder: Path) -> tuple[str, ...] | None:
    """Names of the labels in a folder's meta.json, if it has one that lists them."""
    path = folder / "meta.json"
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("label_names")
    except (json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is not a JSON object: {error}.") from error
    # Some sets describe their labels in a sentence instead of listing names.
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _hub_parts(name: str) -> tuple[str, ...]:
    if Path(name).is_dir():
        return (name,)
    return tuple(name.split(":", 1))


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or _suffix(Path(name)) in _READERS
    )


def _no_split(source: Source, split: str) -> str:
    if source.single_file:
        return (
            f"{source.name} is a single file, so it has no split {split!r}: leave the split out to "
            "use all its rows, or give a folder with one file for each split."
        )
    return f"{source.name} has no split {split!r}. It has: {', '.join(source.splits)}."
