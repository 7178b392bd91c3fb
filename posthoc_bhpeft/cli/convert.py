"""`bhpeft import` and `bhpeft export-lora`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from posthoc_bhpeft.cli.options import (
    BaseOption,
    CheckpointArgument,
    DebugOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
)
from posthoc_bhpeft.cli.output import running

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")]


def import_folders(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="A LoRA, a prefix, an AdapterHub adapter."),
    ],
    output: OutputOption,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="minilm (packaged), a folder, or a hub name. [default: as recorded]"
        ),
    ] = None,
    head_from: Annotated[
        str | None,
        typer.Option(
            "--head-from",
            help="The folder whose trained head is used, where several have one; 'base' for that "
            "of the base model.",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option("--classes", min=1, help="Outputs, where no folder holds a head."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make one checkpoint of what other libraries trained: a LoRA, a prefix, an adapter.

    Each folder is recognised by its adapter_config.json: LoRA and prefix of peft; LoRA, prefix,
    bottleneck adapter or a union of AdapterHub. The outputs stay what they were. For classifiers
    of texts; in Python, posthoc_bhpeft.interop.import_hybrid takes any model.

    \b
    Examples:
      bhpeft import their-lora --output out
      bhpeft import their-lora their-prefix --head-from their-lora --output out
      bhpeft import from-adapterhub --base google-bert/bert-base-uncased --output out
      bhpeft fit out --data reviews.csv --output fitted
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import (
            checkpoint_folder,
            load_base,
            resolve_base,
            resolve_model,
        )
        from posthoc_bhpeft.folders import CHECKPOINT, check_output, whole_folder
        from posthoc_bhpeft.interop.importing import hybrid_of, read_sources

        paths = [checkpoint_folder(folder) for folder in folders]
        check_output(output, overwrite=overwrite, kind=CHECKPOINT, reads=(*paths, base))
        name = resolve_base(_recorded(paths)) if base is None else resolve_model(base)
        labels = _labels(paths, head_from, classes)
        model = load_base(name, label_names=labels)
        sources = read_sources(model, paths, head_from)
        tuned = hybrid_of(model, sources)
        with whole_folder(output, overwrite=overwrite, kind=CHECKPOINT) as fresh:
            tuned.save_pretrained(str(fresh))
        parts = {part: str(source.folder) for source in sources for part in source.parts}
        head = next((str(source.folder) for source in sources if source.head), None)
        for part, folder in parts.items():
            out.say(f"{part} from {folder}")
        out.say(f"head from {head}" if head else "head of the base model: train it before use")
        out.say(f"saved to {output}; next: bhpeft fit {output} --data DATA")
        out.finish(
            command="import", output=output, base=name, parts=parts, head=head, outputs=len(labels)
        )


def export_lora_of(
    checkpoint: CheckpointArgument,
    output: OutputOption,
    model: BaseOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write the LoRA and the head of a hybrid as peft's own LoRA checkpoint.

    Whoever loads it needs peft alone. Adapter and prefix stay behind, and with them a part of
    what the hybrid computes: merge or compare before you rely on it.

    \b
    Examples:
      bhpeft export-lora out --output lora
      bhpeft train --data reviews.csv --peft lora --output out && bhpeft export-lora out -o lora
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import checkpoint_folder, load_adapter, resolve_model
        from posthoc_bhpeft.folders import EXPORT, check_output
        from posthoc_bhpeft.interop import export_lora

        folder = checkpoint_folder(checkpoint)
        check_output(output, overwrite=overwrite, kind=EXPORT, reads=(folder, model))
        tuned = load_adapter(folder, base=None if model is None else resolve_model(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it warns of is said below
            left = export_lora(tuned, output, overwrite=overwrite)
        if left:
            out.say(f"left behind: {' and '.join(left)}; the outputs are not those of {folder}")
        out.say(f'saved to {output}; load it with PeftModel.from_pretrained(model, "{output}")')
        out.finish(command="export-lora", output=output, left_behind=list(left))


def _recorded(paths: Sequence[Path]) -> str:
    """The base model that the first checkpoint which names one was trained on."""
    from posthoc_bhpeft.checkpoints import ADAPTER_FILE, read_json
    from posthoc_bhpeft.errors import ConfigError

    for path in paths:
        config = read_json(path / ADAPTER_FILE)
        name = config.get("base_model_name_or_path") or config.get("model_name")
        if name:
            return str(name)
    raise ConfigError(
        "No checkpoint says which base model it was trained on. Name it with --base: minilm, a "
        "folder, or a hub name."
    )


def _labels(paths: Sequence[Path], head_from: str | None, classes: int | None) -> tuple[str, ...]:
    """Names for the outputs of the head, which are counted in the checkpoints."""
    from posthoc_bhpeft.checkpoints import checkpoint_labels
    from posthoc_bhpeft.errors import CheckpointError, ConfigError
    from posthoc_bhpeft.interop.adapterhub_head import label_names
    from posthoc_bhpeft.stored import WEIGHTS_FILE, stored_shapes

    if classes is not None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    chosen = [path for path in paths if head_from and path.resolve() == Path(head_from).resolve()]
    for path in chosen or paths:
        if (path / WEIGHTS_FILE).is_file():
            stored_shapes(path)  # a damaged file is an error, not one without a head
        try:
            found: Any = label_names(path) or checkpoint_labels(path)
        except CheckpointError:
            continue  # this one holds no head
        if found:
            return tuple(found)
    raise ConfigError("No checkpoint holds a head. Say how many classes there are with --classes.")
