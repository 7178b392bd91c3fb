"""The model beside a posterior: written as its own `save_pretrained` does, found, and rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from posthoc_bhpeft.architectures import class_named, name_of
from posthoc_bhpeft.batches import differentiable
from posthoc_bhpeft.checkpoints import ADAPTER_FILE, load_adapter
from posthoc_bhpeft.errors import CheckpointError, ModelError
from posthoc_bhpeft.quantization import quantization_of
from posthoc_bhpeft.settings import decode, encode
from posthoc_bhpeft.tasks import TASKS, TaskModel, base_of, split_task

RESTORED = ("id2label", "problem_type", "pad_token_id")
"""Settings that users change on a loaded model, and that an adapter's checkpoint leaves out."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What neither the adapter nor its base model records, as JSON data."""
    inner, task = split_task(model)
    config = getattr(inner, "config", None)
    adapter = getattr(inner, "active_adapter", "default")
    return {
        "adapter": adapter if isinstance(adapter, str) else "default",
        "architecture": name_of(base_of(inner)),
        "dtype": str(base_dtype(model)).removeprefix("torch."),
        "quantization": quantization_of(inner),
        "task": encode(task),
        "trained_dtype": trained_dtype(model),
        **{name: getattr(config, name, None) for name in RESTORED},
    }


def check_described(path: Path, about: Mapping[str, Any]) -> None:
    """Raise unless what a record says of its model is of the kinds that `describe_model` wrote.

    Args:
        path: Of the record, for the message.
        about: Its part about the model.

    Raises:
        CheckpointError: Naming the parts that are not.
    """
    fits: dict[str, Callable[[Any], bool]] = {
        "adapter": lambda value: isinstance(value, str),
        "architecture": lambda value: isinstance(value, str),
        "dtype": is_dtype,
        "id2label": lambda value: isinstance(value, dict) and all(map(is_number, value)),
        "quantization": lambda value: isinstance(value, dict),
        "task": lambda value: isinstance(value, dict) and isinstance(value.get("type"), str),
        "trained_dtype": is_dtype,
    }
    given = {name: value for name, value in about.items() if value is not None}
    wrong = [name for name, fit in fits.items() if name in given and not fit(given[name])]
    if wrong:
        said = ", ".join(f"{name} is {given[name]!r}" for name in wrong)
        raise CheckpointError(
            f"{path} does not make sense: of the model, {said}. It was edited, or written by "
            "another version. Copy it again, or fit and save the posterior again."
        )


def is_dtype(name: Any) -> bool:
    """Whether JSON data name a type of tensors, such as "float32"."""
    return isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)


def is_number(key: str) -> bool:
    """Whether a key of JSON is a whole number, as those of labels are."""
    return key.removeprefix("-").isdecimal()


def rebuild_model(folder: Path, record: Mapping[str, Any], *, base: str | None = None) -> nn.Module:
    """The model of a folder, with just those tensors trainable that the posterior is over.

    Args:
        folder: Holds an adapter, or a whole model, and a posterior.
        record: The posterior's JSON.
        base: The base model, instead of the one recorded.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: If there is no model in the folder, or its base model is not found.
    """
    about = dict(record.get("model") or {})
    labels = {int(index): str(name) for index, name in (about.get("id2label") or {}).items()}
    adapter = str(about.get("adapter", "default"))
    place = folder if adapter == "default" else folder / adapter
    dtype = str(about.get("dtype", "float32"))
    architecture = about.get("architecture")
    if (place / ADAPTER_FILE).is_file():
        names = [labels[index] for index in sorted(labels)]
        model: nn.Module = load_adapter(
            place,
            base=base,
            dtype=dtype,
            quantization=about.get("quantization"),
            label_names=names,
            adapter=adapter,
            architecture=architecture,
        )
    else:
        model = load_whole(place, dtype, architecture)
    restore_config(model, {**about, "id2label": labels})
    model = with_recorded_task(model, record)
    restore_trainable(model, record)
    return model.eval()


def restore_trainable(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Make trainable what the posterior is over, in the precision that it was trained in.

    peft loads adapters in float32 whatever they were saved in.
    """
    dtype = (record.get("model") or {}).get("trained_dtype")
    trainable = {entry["parameter"] for entry in record.get("blocks", {}).values()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
        if dtype is not None and name in trainable:
            parameter.data = parameter.data.to(getattr(torch, dtype))


def with_recorded_task(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """A model with the task that a posterior's record names, unless it has one.

    Raises:
        CheckpointError: If this version does not know the task.
    """
    recorded = (record.get("model") or {}).get("task")
    if recorded is None or isinstance(model, TaskModel):
        return model
    if recorded["type"] not in {task.__name__ for task in TASKS}:
        raise CheckpointError(
            f"The posterior is of a model with the task {recorded['type']!r}, which this version "
            "of posthoc-bhpeft does not have. If it is your own, pass the model with it: "
            "from_pretrained(folder, TaskModel(model, task)); else update the package."
        )
    return TaskModel(model, decode(recorded, more=TASKS))


def load_whole(folder: Path, dtype: str, architecture: str | None = None) -> nn.Module:
    """A transformers model that was tuned without an adapter."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds a posterior but neither an adapter ({ADAPTER_FILE}) nor a "
            "model (config.json). Pass the one it belongs to: from_pretrained(folder, model=model)."
        )
    try:
        model: nn.Module = class_named(architecture).from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Could not load the model in {str(folder)!r}: {error}") from error
    return model


def restore_config(model: nn.Module, about: Mapping[str, Any]) -> None:
    """Names of the labels, the kind of problem and the padding token, as they were."""
    config = getattr(model, "config", None)
    labels = about.get("id2label")
    if config is None or not labels:
        return
    config.id2label = labels
    config.label2id = {name: index for index, name in labels.items()}
    config.problem_type = about.get("problem_type")
    if about.get("pad_token_id") is not None:
        config.pad_token_id = about["pad_token_id"]


def base_dtype(model: nn.Module) -> torch.dtype:
    """That of the first frozen tensor: adapters may be kept in a wider one."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    if not floating:
        raise ModelError("The model has no floating-point tensor.")
    return next((p.dtype for p in floating if not p.requires_grad), floating[0].dtype)


def trained_dtype(model: nn.Module) -> str | None:
    """That of all trainable tensors, such as "float32"; `None` where they differ."""
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    return found.pop() if len(found) == 1 else None


def save_model(model: nn.Module, folder: Path) -> None:
    """The model's own files; a module of another library has none, and is passed when loading."""
    save = getattr(split_task(model)[0], "save_pretrained", None)
    if callable(save):
        with differentiable(model):
            save(str(folder))


@contextmanager
def talking_to_hub(repo_id: str, token: str | None) -> Iterator[HfApi]:
    """The hub's interface; what it refuses becomes an error that says what to do.

    Raises:
        CheckpointError: In place of the hub's own errors.
    """
    try:
        yield HfApi(token=token)
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"The hub did not take {repo_id!r}: {first_line(error)} Log in with `hf auth login` or "
            "pass token=, name a repository you may write to, and unset HF_HUB_OFFLINE. "
            "save_pretrained(folder) works without the hub."
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fetch_checkpoint(name: str | Path) -> Path:
    """A folder as it is, or the local copy of a repository on the hub.

    Raises:
        CheckpointError: If there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name)))
    except HFValidationError as error:
        raise CheckpointError(
            f"There is no folder {str(name)!r}. bayes.save_pretrained(folder) or `bhpeft fit` "
            "makes one; a repository on the hub is named user/name."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"There is no folder {str(name)!r}, and the hub gave no repository of that name: "
            f"{first_line(error)}"
        ) from error
