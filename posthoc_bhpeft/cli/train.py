"""`bhpeft train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posthoc_bhpeft.cli.options import (
    BatchOption,
    BottleneckOption,
    DebugOption,
    DecayOption,
    DeviceOption,
    DropOption,
    DtypeOption,
    EpochsOption,
    JsonOption,
    LabelOption,
    LengthOption,
    ModelOption,
    OverwriteOption,
    PairOption,
    PatienceOption,
    PeftChoice,
    PeftOption,
    QuietOption,
    RankOption,
    RateOption,
    SeedOption,
    TextOption,
    TokensOption,
    WarmupOption,
)
from posthoc_bhpeft.cli.output import running


def train(
    data: Annotated[str, typer.Option("--data", help="Folder, file or hub name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    model: ModelOption = "minilm",
    peft: PeftOption = PeftChoice.hybrid,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Draw at most so many training rows.")
    ] = None,
    seed: SeedOption = 0,
    epochs: EpochsOption = 6,
    lr: RateOption = None,
    batch_size: BatchOption = 16,
    max_length: LengthOption = 128,
    weight_decay: DecayOption = 0.01,
    warmup: WarmupOption = 0.06,
    early_stopping: Annotated[
        bool,
        typer.Option(
            "--early-stopping/--no-early-stopping",
            help="Stop when the validation NLL no longer falls, keep the best epoch. "
            "Without it no validation row is used.",
        ),
    ] = True,
    patience: PatienceOption = 2,
    train_split: Annotated[str, typer.Option("--train-split", help="Split to learn.")] = "train",
    validation_split: Annotated[
        str | None, typer.Option("--validation-split", help="[default: the usual names, or a part]")
    ] = None,
    max_validation_rows: Annotated[
        int, typer.Option("--max-validation-rows", help="Draw at most so many.")
    ] = 500,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    drop_unlabelled: DropOption = False,
    regression: Annotated[
        bool, typer.Option("--regression", help="Labels are real numbers, also where integer.")
    ] = False,
    rank: RankOption = 8,
    bottleneck: BottleneckOption = 16,
    virtual_tokens: TokensOption = 8,
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Tune adapter, LoRA and prefix together, or one of them, on labelled texts.

    \b
    Examples:
      bhpeft train --data reviews.csv --output out
      bhpeft train --data sst2/ --max-rows 640 --peft lora --output out
      bhpeft train --model FacebookAI/roberta-base --data imdb --output out
      bhpeft train --data faq.jsonl --text-column question --label-column intent --output out
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import check_output, resolve_model
        from posthoc_bhpeft.cli.rows import absolute
        from posthoc_bhpeft.data import RowSettings, choose_rows
        from posthoc_bhpeft.training import TrainingSettings
        from posthoc_bhpeft.training import train as run

        settings = TrainingSettings(
            peft=peft.value,
            epochs=epochs,
            learning_rate=lr,
            batch_size=batch_size,
            weight_decay=weight_decay,
            warmup=warmup,
            patience=patience,
            max_length=max_length,
            seed=seed,
            rank=rank,
            bottleneck_size=bottleneck,
            num_virtual_tokens=virtual_tokens,
            dtype=dtype,
        )
        rows = RowSettings(
            source=absolute(data),
            train_split=train_split,
            validation_split=validation_split,
            validation=early_stopping,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            regression=True if regression else None,
            drop_unlabelled=drop_unlabelled,
            max_rows=max_rows,
            max_validation_rows=max_validation_rows,
            seed=seed,
        )
        # What can be wrong shall be wrong now, not after an hour of training.
        check_output(output, overwrite=overwrite)
        resolve_model(model)
        chosen = choose_rows(rows)
        for note in chosen.notes:
            out.say(note)
        result = run(
            model,
            chosen.train,
            validation=chosen.validation,
            settings=settings,
            rows=rows,
            progress=out.progress,
            device=device,
        )
        result.save(output, overwrite=overwrite)
        record = result.record
        trainable = sum(p.numel() for p in result.model.parameters() if p.requires_grad)
        out.say(
            f"trained {trainable:,} weights ({peft.value} and head) on {record.train_rows} rows in "
            f"{record.seconds:.0f} s, kept epoch {record.best_epoch} of {len(record.history)}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
        )
        out.say(f"saved to {output}; next: bhpeft fit {output}")
        out.finish(
            command="train",
            output=output,
            model=model,
            peft=peft.value,
            trainable=trainable,
            label_names=record.label_names,
            train_rows=record.train_rows,
            validation_rows=record.validation_rows,
            best_epoch=record.best_epoch,
            metrics=record.metrics,
            seconds=record.seconds,
            notes=chosen.notes,
        )
