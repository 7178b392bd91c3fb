"""One hybrid from checkpoints that other libraries wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from posthoc_bhpeft.checkpoints import ADAPTER_FILE, checkpoint_folder, read_json
from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.hybrid import HybridConfig
from posthoc_bhpeft.interop.adapterhub import adapterhub_source
from posthoc_bhpeft.interop.source import PARTS, Head, Source
from posthoc_bhpeft.interop.stock import lora_source, prefix_source

#: The value of `head_from` that keeps the head of the base model.
BASE = "base"

_Reader = Callable[[PreTrainedModel, Path, Mapping[str, Any], bool], Source]
_READERS: dict[str, _Reader] = {
    "LORA": lora_source,
    "PREFIX_TUNING": prefix_source,
    "ADAPTERHUB": adapterhub_source,
}


def import_hybrid(
    model: PreTrainedModel,
    *folders: str | Path,
    head_from: str | Path | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """A trainable hybrid with the outputs of checkpoints made elsewhere.

    Each folder is recognised by its adapter_config.json: a LoRA or a prefix that peft saved, or an
    adapter of AdapterHub (LoRA, prefix, bottleneck, or a union of them). Several folders become one
    hybrid, each with other parts. In eval mode the outputs are the sources' but for the rounding of
    floats: of one source alone, or of peft's prefix around a model with peft's LoRA in it.

    Args:
        model: The base model that they were trained on, with a head of the right size. It becomes
            part of the result, as with `get_peft_model`.
        folders: One or more checkpoints.
        head_from: The folder whose trained head is used, where several have one; "base" keeps the
            head that `model` has.
        adapter_name: What the hybrid is called in peft.

    Returns:
        The hybrid, in eval mode, its parts and its head trainable.

    Raises:
        CheckpointError: A file is missing, damaged, or made for another base model.
        ConfigError: Two sources have the same part or a head each, or one uses what a hybrid
            does not have.
        ModelError: The model is a PEFT model already.
    """
    return hybrid_of(model, read_sources(model, folders, head_from), adapter_name)


def hybrid_of(
    model: PreTrainedModel, sources: Sequence[Source], adapter_name: str = "default"
) -> PeftModel:
    """The hybrid of sources that were read; see `import_hybrid`."""
    head = _one_head(sources)
    tuned = get_peft_model(model, _config(sources, head), adapter_name=adapter_name)
    tensors = {name: tensor for source in sources for name, tensor in source.tensors.items()}
    if head is not None:
        tensors |= head.tensors
    _load(tuned, tensors, adapter_name)
    return tuned.eval()


def read_sources(
    model: PreTrainedModel, folders: Sequence[str | Path], head_from: str | Path | None = None
) -> list[Source]:
    """Checkpoints in a hybrid's words, the model left alone; see `import_hybrid`."""
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ModelError(
            "import_hybrid needs the base model, and this one has adapters already. Load the base "
            "anew with AutoModelForSequenceClassification.from_pretrained or take them off with "
            "unload()."
        )
    if not folders:
        raise ConfigError("import_hybrid needs a checkpoint: the folder of a LoRA, for instance.")
    paths = [checkpoint_folder(folder) for folder in folders]
    chosen = None if head_from in (None, BASE) else Path(str(head_from)).expanduser()
    if chosen is not None and chosen.resolve() not in [path.resolve() for path in paths]:
        raise ConfigError(
            f"head_from={str(head_from)!r} is none of the folders {[str(path) for path in paths]}. "
            "Name one of them, or 'base' for the head of the base model."
        )
    sources = []
    for path in paths:
        with_head = head_from is None or (chosen is not None and path.resolve() == chosen.resolve())
        sources.append(_read(model, path, with_head))
    _refuse_twice(sources)
    return sources


def kind_of(folder: Path) -> str:
    """Who wrote a checkpoint: the name of a method of peft, or "ADAPTERHUB".

    Raises:
        ConfigError: It is of no kind that can be imported.
    """
    config = read_json(folder / ADAPTER_FILE)
    kind = config.get("peft_type")
    if kind is None and "config" in config and "model_type" in config:
        return "ADAPTERHUB"
    if kind == "BHPEFT":
        raise ConfigError(
            f"{str(folder)!r} is a hybrid already. Load it with PeftModel.from_pretrained, or fit "
            "it with `bhpeft fit`."
        )
    if kind not in _READERS:
        raise ConfigError(
            f"{str(folder)!r} is of the kind {kind!r}. LORA and PREFIX_TUNING of peft and adapters "
            "of AdapterHub can be imported into a hybrid. `bayesianize` and `bhpeft fit` take more "
            "kinds as they are."
        )
    return str(kind)


def _read(model: PreTrainedModel, folder: Path, with_head: bool) -> Source:
    reader = _READERS[kind_of(folder)]
    config = read_json(folder / ADAPTER_FILE)
    try:
        return reader(model, folder, config, with_head)
    except KeyError as error:
        raise CheckpointError(
            f"{str(folder / ADAPTER_FILE)!r} lacks {error}. It is cut off, or written by a version "
            "whose format is not known here."
        ) from error


def _refuse_twice(sources: Sequence[Source]) -> None:
    seen: dict[str, Source] = {}
    for source in sources:
        for part in source.parts:
            if part in seen:
                raise ConfigError(
                    f"Both {str(seen[part].folder)!r} and {str(source.folder)!r} hold a {part}, "
                    "and a hybrid has one of each. Leave one folder out, or join the two first "
                    "(peft's add_weighted_adapter does it for LoRA)."
                )
            seen[part] = source


def _one_head(sources: Sequence[Source]) -> Head | None:
    heads = {str(source.folder): source.head for source in sources if source.head is not None}
    if len(heads) > 1:
        raise ConfigError(
            f"{len(heads)} checkpoints hold a trained head: {list(heads)}. Choose one of these "
            "folders with head_from (on the command line --head-from), or 'base'."
        )
    return next(iter(heads.values()), None)


def _config(sources: Sequence[Source], head: Head | None) -> HybridConfig:
    settings: dict[str, Any] = dict.fromkeys(PARTS, 0)
    given = [source.settings.get("task_type") for source in sources]
    tasks = {str(task) for task in given if task is not None}
    if len(tasks) > 1:
        raise ConfigError(
            f"The checkpoints were trained for different tasks: {', '.join(sorted(tasks))}. Import "
            "those of one task."
        )
    for source in sources:
        settings |= {name: value for name, value in source.settings.items() if value is not None}
    if head is not None:
        settings["modules_to_save"] = list(head.modules)
    return HybridConfig(**settings)


def _load(model: PeftModel, tensors: Mapping[str, Tensor], adapter_name: str) -> None:
    """Put every tensor in its place; heads that no source has keep their values."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    given = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    lost = sorted(set(given) - set(state))
    empty = sorted(name for name in set(state) - set(given) if ".bhpeft_" in name)
    if lost or empty:
        raise CheckpointError(
            f"The checkpoints do not fill the hybrid: without a place {lost[:2]}, without a value "
            f"{empty[:2]}. A part may lie inside a module that is trained whole, as a LoRA on the "
            "head does. Load the base model anew: this one has the hybrid's layers now."
        )
    set_peft_model_state_dict(model, {**state, **given}, adapter_name=adapter_name)
