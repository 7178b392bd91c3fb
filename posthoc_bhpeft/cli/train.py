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
    LabelColumnsOption,
    LabelOption,
    ModelOption,
    OverwriteOption,
    PairOption,
    PatienceOption,
    PeftChoice,
    PeftOption,
    QuantizeChoice,
    QuantizeOption,
    QuietOption,
    RankOption,
    RateOption,
    SeedOption,
    SeparatorOption,
    TaskChoice,
    TextOption,
    TokensOption,
    WarmupOption,
)
from posthoc_bhpeft.cli.output import running


def train(
    data: Annotated[str, typer.Option("--data", help="Folder, file or hub name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    model: ModelOption = "minilm",
    task: Annotated[
        TaskChoice | None,
        typer.Option(
            "--task",
            help="text: a head reads each text. choices: a causal language model answers with the "
            "letter of a choice; another model gets a head that scores each choice. words: a head "
            "labels each word. [default: what the columns of the rows tell]",
        ),
    ] = None,
    peft: PeftOption = PeftChoice.hybrid,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Draw at most so many training rows.")
    ] = None,
    seed: SeedOption = 0,
    epochs: EpochsOption = 6,
    lr: RateOption = None,
    batch_size: BatchOption = 16,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            help="Tokens a text is cut at; a prompt loses its beginning. [default: 128, of "
            "prompts 512, or what the model has positions for]",
        ),
    ] = None,
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
        int,
        typer.Option(
            "--max-validation-rows",
            help="Draw at most so many; of training rows kept back, one of each class or more.",
        ),
    ] = 500,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    label_columns: LabelColumnsOption = None,
    label_separator: SeparatorOption = None,
    drop_unlabelled: DropOption = False,
    regression: Annotated[
        bool, typer.Option("--regression", help="Labels are real numbers, also where integer.")
    ] = False,
    rank: RankOption = 8,
    bottleneck: BottleneckOption = 16,
    virtual_tokens: TokensOption = 8,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = QuantizeChoice.no,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Tune adapter, LoRA and prefix together, or one of them, on labelled texts or questions.

    A question is a row with a text, a list of texts in the column `choices`, and as its label the
    number of the right one, counted from 0. Where there is no such column, --task choices takes
    the names of the classes for the choices of every row. For a label on each word a row has a list
    of words (`tokens`) and a list of as many labels (`ner_tags`, `tags` or `labels`).

    Where any number of labels may apply to a row, they are a list: of names or numbers, empty for
    none, or with a 0 or 1 for each label. A csv has no lists; there name a column of 0 and 1 for
    each label with --label-columns, or what stands between the labels with --label-separator.

    \b
    Examples:
      bhpeft train --data reviews.csv --output out
      bhpeft train --data sst2/ --max-rows 640 --peft lora --output out
      bhpeft train --model FacebookAI/roberta-base --data imdb --output out
      bhpeft train --data faq.jsonl --text-column question --label-column intent --output out
      bhpeft train --model Qwen/Qwen2.5-0.5B --data arc_easy --output out
      bhpeft train --model Qwen/Qwen2.5-0.5B --data boolq --task choices --output out
      bhpeft train --data wnut_17 --output out
      bhpeft train --data go_emotions --output out
      bhpeft train --data posts.csv --label-columns toxic,threat,insult --output out
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from dataclasses import replace

        from posthoc_bhpeft.checkpoints import resolve_model
        from posthoc_bhpeft.cli.rows import absolute, names_in
        from posthoc_bhpeft.data import RowSettings, choose_rows
        from posthoc_bhpeft.data.forms import Form
        from posthoc_bhpeft.data.loader import check_length
        from posthoc_bhpeft.folders import CHECKPOINT, check_output
        from posthoc_bhpeft.training import TrainingSettings, form_for
        from posthoc_bhpeft.training import train as run
        from posthoc_bhpeft.training.positions import check_positions, cut_to, most_tokens

        if max_length is not None:
            check_length(max_length)
        settings = TrainingSettings(
            peft=peft.value,
            epochs=epochs,
            learning_rate=lr,
            batch_size=batch_size,
            weight_decay=weight_decay,
            warmup=warmup,
            patience=patience,
            seed=seed,
            rank=rank,
            bottleneck_size=bottleneck,
            num_virtual_tokens=virtual_tokens,
            dtype=dtype,
            quantize=quantize.value,
        )
        rows = RowSettings(
            source=absolute(data),
            train_split=train_split,
            validation_split=validation_split,
            validation=early_stopping,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            label_columns=names_in(label_columns),
            label_separator=label_separator,
            regression=True if regression else None,
            choices=None if task is None else task is TaskChoice.choices,
            multi_label=None,
            words=None if task is None else task is TaskChoice.words,
            drop_unlabelled=drop_unlabelled,
            max_rows=max_rows,
            max_validation_rows=max_validation_rows,
            seed=seed,
        )
        # What can be wrong shall be wrong now, not after an hour of training.
        check_output(output, overwrite=overwrite, kind=CHECKPOINT, reads=(data, model))
        resolve_model(model)
        limit = most_tokens(model)
        check_positions(model, max_length or 0, limit)
        chosen = choose_rows(rows)
        form = form_for(model, chosen.train)
        said = form.describe(chosen.train)
        length, cut = cut_to(model, max_length or form.usual_length, limit)
        notes = (*chosen.notes, *cut)
        for note in (*notes, said):
            out.say(note)
        result = run(
            model,
            chosen.train,
            validation=chosen.validation,
            settings=replace(settings, max_length=length),
            rows=rows,
            progress=out.progress,
            device=device,
        )
        result.save(output, overwrite=overwrite)
        record = result.record
        trainable = sum(p.numel() for p in result.model.parameters() if p.requires_grad)
        parts = peft.value if form is Form.PROMPT else f"{peft.value} and head"
        out.say(
            f"trained {trainable:,} weights ({parts}) on {record.train_rows} rows in "
            f"{record.seconds:.0f} s, kept epoch {record.best_epoch} of {len(record.history)}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
        )
        out.say(f"saved to {output}; next: bhpeft fit {output}")
        out.finish(
            command="train",
            output=output,
            model=model,
            task=said,
            peft=peft.value,
            trainable=trainable,
            label_names=record.label_names,
            train_rows=record.train_rows,
            validation_rows=record.validation_rows,
            best_epoch=record.best_epoch,
            metrics=record.metrics,
            seconds=record.seconds,
            notes=notes,
        )
