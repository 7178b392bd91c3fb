"""`bhpeft audit`."""

from __future__ import annotations

import typer

from posthoc_bhpeft.cli import audit_options as options
from posthoc_bhpeft.cli.output import running

STOPPED = 3
"""Exit code of a gate that stops a pipeline."""


def audit(
    subject: options.SubjectArgument,
    other: options.OtherArgument = None,
    data: options.DataOption = None,
    split: options.SplitOption = None,
    max_rows: options.MaxRowsOption = None,
    text_column: options.TextColumnOption = None,
    text_pair_column: options.TextPairColumnOption = None,
    label_column: options.LabelColumnOption = None,
    label_columns: options.LabelColumnsOption = None,
    label_separator: options.LabelSeparatorOption = None,
    drop_unlabelled: options.DropUnlabelledOption = False,
    compare: options.CompareOption = None,
    ensemble: options.EnsembleOption = None,
    held_out: options.HeldOutOption = None,
    outside: options.OutsideOption = None,
    reference: options.ReferenceOption = None,
    time: options.TimeOption = None,
    label: options.LabelOption = None,
    by: options.ByOption = None,
    max_error: options.MaxErrorOption = None,
    max_review: options.MaxReviewOption = None,
    score: options.ScoreOption = None,
    tolerance: options.ToleranceOption = None,
    sets: options.SetsOption = None,
    resamples: options.ResamplesOption = 1000,
    seed: options.SeedOption = 0,
    output: options.OutputOption = None,
    overwrite: options.OverwriteOption = False,
    fail_if: options.FailIfOption = None,
    save_review: options.SaveReviewOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    batch_size: options.BatchSizeOption = 32,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    debug: options.DebugOption = False,
) -> None:
    """Audit a model before it may decide anything: is it calibrated, and where does it fail?

    SUBJECT is a checkpoint, with a posterior or without, for classes or for a number; or a file of
    predictions from anywhere (see docs/audit.md). The verdict and the figures are shown; with
    --output there is a report too, one page that needs no network.

    \b
    Examples:
      bhpeft audit out --output report
      bhpeft audit out --compare map --compare temperature --by airline --output report
      bhpeft audit out --max-error 0.02 --save-review error --output report
      bhpeft audit stars --tolerance 1 --output report          a regression
      bhpeft audit posts --label toxic --output report          one of several labels a row
      bhpeft audit predictions.csv --fail-if "ece.low>0.05" --fail-if "accuracy<0.9"
      bhpeft audit new old --data tweets.csv --output report    two checkpoints
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        import shlex
        import sys

        from posthoc_bhpeft.audit.auditing import audit as measured
        from posthoc_bhpeft.audit.gates import Condition, failures
        from posthoc_bhpeft.audit.report import Made
        from posthoc_bhpeft.audit.reporting import write_report
        from posthoc_bhpeft.checkpoints import write_json
        from posthoc_bhpeft.cli.asked import Asked, Wishes, check_kind, predicts_numbers
        from posthoc_bhpeft.cli.auditing import prepare, save_rule
        from posthoc_bhpeft.cli.findings import show
        from posthoc_bhpeft.cli.rows import names_in
        from posthoc_bhpeft.data import RowSettings
        from posthoc_bhpeft.folders import REPORT, check_output, whole_folder

        conditions = [Condition.parse(text) for text in fail_if or ()]
        if output is not None:
            reads = (subject, other, data, held_out, outside, reference, model, *(ensemble or ()))
            check_output(output, overwrite=overwrite, kind=REPORT, reads=reads)
        wishes = Wishes(
            score=score,
            max_error=max_error,
            max_review=max_review,
            sets=sets,
            tolerance=tolerance,
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
                label_columns=names_in(label_columns),
                label_separator=label_separator,
                drop_unlabelled=drop_unlabelled,
            ),
            split=split,
            label=label,
            rivals=tuple(compare or ()),
            ensemble=tuple(ensemble or ()),
            held_out=held_out,
            outside=outside,
            reference=reference,
            save_review="" if save_review is None else save_review.value,
            max_rows=max_rows,
            seed=seed,
            batch_size=batch_size,
            base=model,
            device=device,
            progress=out.progress,
        )
        regression = predicts_numbers(subject)
        check_kind(regression, asked, wishes, conditions)
        plan = wishes.plan(regression)
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
            with whole_folder(output, overwrite=overwrite, kind=REPORT) as fresh:
                write_report(found, fresh, made=Made(command=shlex.join(["bhpeft", *sys.argv[1:]])))
                write_json(fresh / "audit.json", content)
            out.say(f"wrote {output / 'report.html'}")
        if asked.save_review and not stopped:
            out.say(f"saved: {save_rule(found, ready, asked)}")
        out.finish(command="audit", output=output, **content)
        for text in stopped:
            out.say(f"stopped by --fail-if {text}")
        if stopped and asked.save_review:
            out.say("so no threshold was saved")
    if stopped:
        raise typer.Exit(STOPPED)
