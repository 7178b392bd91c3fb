"""A checkpoint's model as shapes alone: no weight is read, nothing is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from posthoc_bhpeft.architectures import class_named, has_labels, name_in_adapter
from posthoc_bhpeft.checkpoints import (
    ADAPTER_FILE,
    checkpoint_folder,
    checkpoint_labels,
    read_json,
    resolve_base,
    resolve_model,
)
from posthoc_bhpeft.errors import CheckpointError

if TYPE_CHECKING:
    from peft import PeftModel


def shapes_of(
    folder: str | Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    label_names: Sequence[str] | None = None,
) -> PeftModel:
    """The tuned model of a checkpoint folder on the meta device, for `estimate`.

    Args:
        folder: With an adapter.
        base: The base model, where the recorded one must not be used; its config is read.
        dtype: Of the base model, "float32", "bfloat16" or "float16".
        label_names: Of the outputs, where the caller knows them; else those of the checkpoint.

    Raises:
        CheckpointError: If the folder is no checkpoint, or its base model is not found.
    """
    from peft import PeftConfig, get_peft_model
    from transformers import AutoConfig

    import posthoc_bhpeft.hybrid  # noqa: F401

    path = checkpoint_folder(folder)
    described = read_json(path / ADAPTER_FILE)
    recorded = base or described.get("base_model_name_or_path")
    if not recorded:
        raise CheckpointError(
            f"{str(path)!r} does not say which base model it was trained on. Name it with base= "
            "(on the command line --model)."
        )
    architecture = name_in_adapter(described)
    options = {"pad_token_id": 0}
    if has_labels(architecture):
        options["num_labels"] = len(label_names or checkpoint_labels(path) or ("value",))
    try:
        config = AutoConfig.from_pretrained(resolve_model(resolve_base(recorded)), **options)
        adapter = PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The configs of {str(path)!r} do not make sense: {error}") from error
    adapter.inference_mode = False
    # peft warns where this differs from what the shapes below were loaded from, which is nothing.
    adapter.base_model_name_or_path = None
    kind = class_named(architecture)
    make = kind.from_config if kind.__name__.startswith("Auto") else kind._from_config
    with torch.device("meta"):
        model: PeftModel = get_peft_model(make(config, dtype=getattr(torch, dtype)), adapter)
    return model.eval()
