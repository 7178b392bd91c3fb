"""`bhpeft audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posthoc_bhpeft.cli.options import (
    BaseOption,
    DebugOption,
    DeviceOption,
    DropOption,
    JsonOption,
    LabelOption,
    OverwriteOption,
    PairOption,
    QuietOption,
    ReviewChoice,
    TextOption,
)
from posthoc_bhpeft.cli.output import running

STOPPED = 3
"""Exit code of a gate that stops a pipeline."""


def audit(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="A checkpoint folder or a predictions file.")
    ],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another one, to compare with.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.html, audit.json and pictures."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Held-out rows. [default: the data trained on, split test]"),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="[default: test]")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            help="Also measure map, temperature, dropout, last-layer, diagonal, ours-temperature; "
            "give it once for each. [default: map]",
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option("--ensemble", help="Checkpoint of a further member; once for each."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Split to fit temperatures on. [default: validation]"),
    ] = None,
    outside: Annotated[
        str | None, typer.Option("--outside", help="Rows of another kind: does doubt tell them?")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Earlier held-out rows, to see a drift.")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Column that says when, with --reference.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column to slice by; once for each. [default: all]"),
    ] = None,
    score: Annotated[
        str,
        typer.Option("--score", help="Doubt to decide by: confidence, total, aleatoric, epistemic"),
    ] = "confidence",
    max_error: Annotated[
        float, typer.Option("--max-error", help="Wanted share of errors in automatic answers.")
    ] = 0.05,
    max_review: Annotated[
        float, typer.Option("--max-review", help="Wanted share of rows for human review.")
    ] = 0.10,
    sets: Annotated[
        float, typer.Option("--sets", help="How often prediction sets may miss the label.")
    ] = 0.05,
    save_review: Annotated[
        ReviewChoice | None,
        typer.Option(
            "--save-review",
            help="Keep a threshold with the posterior, for predict --review: that of --max-error "
            "or that of --max-review.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", help="Leave with exit code 3 if so, such as 'ece>0.05'."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Audit at most so many rows.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Of the bootstrap behind the intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of draws and resamples.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows a batch.")] = 32,
    text_column: TextOption = None,
    text_pair_column: PairOption = None,
    label_column: LabelOption = None,
    drop_unlabelled: DropOption = False,
    model: BaseOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Audit a model before it may decide anything: is it calibrated, and where does it fail?

    SUBJECT is a checkpoint, with a posterior or without, or a file of predictions from anywhere
    (probabilities and labels; see docs/audit.md). The report is one page that needs no network.

    \b
    Examples:
      bhpeft audit out --output report
      bhpeft audit out --compare map --compare temperature --by airline --output report
      bhpeft audit out --max-error 0.02 --save-review error --output report
      bhpeft audit predictions.csv --output report --fail-if "ece>0.05"
      bhpeft audit new old --data tweets.csv --output report
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        import shlex
        import sys

        from posthoc_bhpeft.audit.auditing import Plan
        from posthoc_bhpeft.audit.auditing import audit as measured
        from posthoc_bhpeft.audit.gates import Condition, failures
        from posthoc_bhpeft.audit.report import Made, write_report
        from posthoc_bhpeft.checkpoints import check_output, whole_folder, write_json
        from posthoc_bhpeft.cli.auditing import Asked, prepare, save_rule
        from posthoc_bhpeft.cli.findings import show
        from posthoc_bhpeft.data import RowSettings

        conditions = [Condition.parse(text) for text in fail_if or ()]
        if output is not None:
            check_output(output, overwrite=overwrite)
        plan = Plan(
            score=score,
            max_error=max_error,
            max_review=max_review,
            sets=sets,
            columns=by,
            time=time,
            resamples=resamples,
            seed=seed,
        )
        asked = Asked(
            subject=subject,
            other=other,
            rows=RowSettings(
                source=data or "",
                text_column=text_column,
                text_pair_column=text_pair_column,
                label_column=label_column,
                drop_unlabelled=drop_unlabelled,
            ),
            split=split,
            rivals=tuple(compare or ()),
            ensemble=tuple(ensemble or ()),
            held_out=held_out,
            outside=outside,
            reference=reference,
            save_review=save_review is not None,
            max_rows=max_rows,
            seed=seed,
            batch_size=batch_size,
            base=model,
            device=device,
            progress=out.progress,
        )
        ready = prepare(asked, out.say)
        found = measured(
            ready.subject,
            ready.loader,
            rivals=ready.rivals,
            outside=ready.outside,
            reference=ready.reference,
            name=ready.name,
            plan=plan,
            progress=out.progress,
        )
        show(found, out)
        stopped = failures(found, conditions)
        content = {**found.to_dict(), "failed": list(stopped)}
        if output is not None:
            with whole_folder(output, overwrite=overwrite) as fresh:
                write_report(found, fresh, made=Made(command=shlex.join(["bhpeft", *sys.argv[1:]])))
                write_json(fresh / "audit.json", content)
            out.say(f"wrote {output / 'report.html'}")
        if save_review is not None and not stopped:
            out.say(f"saved: {save_rule(found, ready, save_review.value, subject)}")
        out.finish(command="audit", output=output, **content)
        for text in stopped:
            out.say(f"stopped by --fail-if {text}")
        if stopped and save_review is not None:
            out.say("so no threshold was saved")
    if stopped:
        raise typer.Exit(STOPPED)
