"""`bhpeft stream`."""

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
    EveryChoice,
    HeadsChoice,
    JsonOption,
    LabelOption,
    LengthOption,
    ModelOption,
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
    TextOption,
    TokensOption,
    WarmupOption,
)
from posthoc_bhpeft.cli.output import running


def stream(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of rounds; or one data set, cut by --by.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the stream; one that is there goes on."),
    ],
    by: Annotated[
        str | None,
        typer.Option("--by", help="Column that tells the rounds apart: a round a value."),
    ] = None,
    every: Annotated[
        EveryChoice | None,
        typer.Option("--every", help="With --by: it holds dates, and a round lasts so long."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            help="So many rounds of equally many rows: in the order of the dates in --by, or, "
            "without it, as the rows stand.",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split to cut; may be repeated. [default: train]"),
    ] = None,
    test_share: Annotated[
        float,
        typer.Option("--test-share", help="Of each round, kept back to score with for ever."),
    ] = 0.2,
    validation_share: Annotated[
        float,
        typer.Option("--validation-share", help="Of the rest, kept back to stop training early."),
    ] = 0.0,
    heads: Annotated[
        HeadsChoice,
        typer.Option(
            "--heads",
            help="shared: one set of labels, new names are added as they come. per-round: every "
            "round has labels of its own, and it is known which round a text belongs to.",
        ),
    ] = HeadsChoice.shared,
    weight: Annotated[
        float,
        typer.Option(
            "--weight",
            help="How strongly what was learnt is held on to: higher forgets less, learns less.",
        ),
    ] = 30.0,
    forget: Annotated[
        float,
        typer.Option(
            "--forget", help="Share of the old precision to let go a round, for a drifting world."
        ),
    ] = 0.0,
    max_terms: Annotated[
        int,
        typer.Option(
            "--max-terms",
            help="Kronecker terms kept for each block; more are merged, so the size stays the "
            "same.",
        ),
    ] = 2,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Draw at most so many training rows a round.")
    ] = None,
    max_test_rows: Annotated[
        int | None, typer.Option("--max-test-rows", help="Draw at most so many test rows a round.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the rounds, train nothing, write nothing.")
    ] = False,
    model: ModelOption = "minilm",
    peft: PeftOption = PeftChoice.hybrid,
    seed: SeedOption = 0,
    epochs: EpochsOption = 6,
    lr: RateOption = None,
    batch_size: BatchOption = 16,
    max_length: LengthOption = None,
    weight_decay: DecayOption = 0.01,
    warmup: WarmupOption = 0.06,
    patience: PatienceOption = 2,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    drop_unlabelled: DropOption = False,
    rank: RankOption = 8,
    bottleneck: BottleneckOption = 16,
    virtual_tokens: TokensOption = 8,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = QuantizeChoice.no,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Learn data that arrives in rounds, without keeping the old data and without forgetting it.

    Each round starts from the posterior of the last one. After each, all rounds so far are scored
    on the rows kept back. A round becomes a folder OUTPUT/round-003-NAME: a checkpoint that
    `bhpeft predict` takes, with lineage.json beside it (rows, parent, figures).

    DATA is a folder with one file a round (in the order of their names: 2023.jsonl, 2024.jsonl),
    or one subfolder a round (train.jsonl, test.jsonl). A single data set is cut with --by or
    --rounds.

    Run the same command again after an interruption, or when a new file has come: rounds that
    OUTPUT holds are skipped, and the numbers are those of a run in one go.

    In the tables, backward transfer is how much accuracy on earlier rounds has changed since they
    were learnt (below 0: forgotten), forward transfer how much better than guessing a round went
    before it was learnt.

    \b
    Examples:
      bhpeft stream monthly/ --output news
      bhpeft stream posts.csv --by date --every year --output posts --dry-run
      bhpeft stream fomc/ --by date --rounds 4 --split train --split test --output fomc
      bhpeft stream tasks.jsonl --by task --heads per-round --output tasks
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.checkpoints import resolve_model
        from posthoc_bhpeft.cli.rounds import Cut, find_rounds, show_plan, show_round, write_picture
        from posthoc_bhpeft.cli.rows import absolute
        from posthoc_bhpeft.data import RowSettings
        from posthoc_bhpeft.data.forms import Form
        from posthoc_bhpeft.streams import Every, Heads, Shares, Stream
        from posthoc_bhpeft.streams.methods.carried import CarriedPosterior
        from posthoc_bhpeft.training import TrainingSettings
        from posthoc_bhpeft.training.positions import check_positions, cut_to, most_tokens

        # What can be wrong shall be wrong now, not after an hour of training.
        resolve_model(model)
        limit = most_tokens(model)
        check_positions(model, max_length or 0, limit)
        length, cut = cut_to(model, max_length or Form.TEXT.usual_length, limit)
        for note in cut:
            out.say(note)
        method = CarriedPosterior(weight=weight, forget=forget, max_terms=max_terms)
        settings = TrainingSettings(
            peft=peft.value,
            epochs=epochs,
            learning_rate=lr,
            batch_size=batch_size,
            weight_decay=weight_decay,
            warmup=warmup,
            patience=patience,
            max_length=length,
            seed=seed,
            rank=rank,
            bottleneck_size=bottleneck,
            num_virtual_tokens=virtual_tokens,
            dtype=dtype,
            quantize=quantize.value,
        )
        learning = Stream(
            output,
            model,
            settings,
            method,
            Heads[heads.name.upper()],
            device=device,
            progress=out.progress,
        )
        found = find_rounds(
            RowSettings(
                source=absolute(data),
                text_column=text_column,
                text_pair_column=text_pair_column,
                label_column=label_column,
                regression=False,
                drop_unlabelled=drop_unlabelled,
                seed=seed,
            ),
            Cut(
                by=by,
                every=None if every is None else Every(every.value),
                rounds=rounds,
                splits=tuple(split or ()),
                shares=Shares(test_share, validation_share, seed),
                max_rows=max_rows,
                max_test_rows=max_test_rows,
            ),
            out,
        )
        known = {one.name for one in learning.report.rounds}
        show_plan(out, found, known)
        if dry_run:
            return
        for lineage in learning.learning(found):
            if lineage.name not in known:
                show_round(out, learning.report, lineage.name, len(found))
                write_picture(out, learning)
        report = learning.report
        if known.issuperset(one.name for one in found):
            show_round(out, report, report.rounds[-1].name, len(found))
        if heads is HeadsChoice.shared:
            place = output / report.rounds[-1].folder
            out.say(f"next: bhpeft predict {place} --data NEW --output OUT")
        else:
            out.say(f"next, in Python: Stream.open({str(output)!r}).predict(data, round_name)")
        out.finish(
            command="stream",
            output=output,
            rounds=[one.brief() for one in report.rounds],
            summary=report.summary(),
        )
