"""The file with an adapter's tensors: which there are, and what they tell."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.folders import ADAPTER_FILE, TRAINING_FILE

WEIGHTS_FILE = "adapter_model.safetensors"


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors that peft saved, without reading their numbers.

    Raises:
        CheckpointError: the file is not there or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(_missing_weights(folder))
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged or cut off ({error}). Copy it again from where the adapter "
            "was trained, or save the adapter again."
        ) from error


def outputs_in_head(folder: Path, heads: Collection[str]) -> int:
    """C, the smallest first side of the 2-D weights in the saved head modules.

    Raises:
        CheckpointError: no head was saved.
    """
    sides = [
        shape[0]
        for name, shape in stored_shapes(folder).items()
        if len(shape) == 2 and any(f".{head}." in f".{name}." for head in heads)
    ]
    if not sides:
        raise CheckpointError(
            f"{str(folder)!r} has neither {TRAINING_FILE} nor a saved head (modules_to_save), so "
            "the number of classes is not known. Was the adapter trained with task_type='SEQ_CLS'?"
        )
    return int(min(sides))


def check_all_saved(folder: Path, drawn: frozenset[str], base: str) -> None:
    """Raise if a tensor is neither in the files of the base nor in those of the adapter.

    Raises:
        CheckpointError: naming the first, and what to do.
    """
    if not drawn or not (folder / WEIGHTS_FILE).is_file():
        return
    saved = tuple(stored_shapes(folder))
    lost = sorted(name for name in drawn if not any(one.endswith(f".{name}") for one in saved))
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors, first {lost[0]!r}, are neither in the base {base!r} nor in "
            f"{str(folder)!r}, so they would be drawn at random at every loading. Name the base "
            "that the adapter was trained on (base=, on the command line --model), or train again "
            f"with {lost[0].rsplit('.', 1)[0]!r} in modules_to_save."
        )


def _missing_weights(folder: Path) -> str:
    """What to do about a checkpoint without `WEIGHTS_FILE`."""
    if not (folder / "adapter_model.bin").is_file():
        return (
            f"{str(folder)!r} has {ADAPTER_FILE} but no weights: {WEIGHTS_FILE} is missing. Copy "
            "the whole folder."
        )
    return (
        f"{str(folder)!r} has its weights in adapter_model.bin, from which the number of classes "
        f"is not read; {WEIGHTS_FILE} is missing. Load it with peft and save it again: "
        "PeftModel.from_pretrained(model, folder).save_pretrained(folder) writes that file."
    )
