"""Options of `bhpeft audit`, in the order and under the panels of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from posthoc_bhpeft.cli.options import ReviewChoice
from posthoc_bhpeft.cli.panels import COMPARED, MEASURED, RESULT, ROWS, RUN


def _option(panel: str, *names: str, **further: Any) -> Any:
    # Defaults are said in the text: some depend on the kind of model.
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **further)


SubjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="SUBJECT", help="Checkpoint folder, or file of predictions.", show_default=False
    ),
]
OtherArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="OTHER",
        help="Another checkpoint for the same classes, or another file about the same rows, to "
        "compare with.",
    ),
]
DataOption = Annotated[
    str | None,
    _option(
        ROWS,
        "--data",
        metavar="DATA",
        help="Held-out rows, which had no part in training: a folder with test.jsonl, a csv, "
        "json, jsonl or parquet file, or a data set of the hub. [default: the data trained on]",
    ),
]
SplitOption = Annotated[
    str | None,
    _option(ROWS, "--split", metavar="SPLIT", help="Of --data. [default: test]"),
]
MaxRowsOption = Annotated[
    int | None,
    _option(ROWS, "--max-rows", metavar="N", help="Draw at most so many. [default: all]"),
]
TextColumnOption = Annotated[
    str | None,
    _option(ROWS, "--text-column", metavar="NAME", help="With the text. [default: found]"),
]
TextPairColumnOption = Annotated[
    str | None,
    _option(ROWS, "--text-pair-column", metavar="NAME", help="With a second text."),
]
LabelColumnOption = Annotated[
    str | None,
    _option(
        ROWS,
        "--label-column",
        metavar="NAME",
        help="With the class, or the number. [default: found]",
    ),
]
LabelColumnsOption = Annotated[
    str | None,
    _option(
        ROWS,
        "--label-columns",
        metavar="A,B,...",
        help="Several labels a row: a column of 0 and 1 for each, with commas between the names.",
    ),
]
LabelSeparatorOption = Annotated[
    str | None,
    _option(
        ROWS,
        "--label-separator",
        metavar="TEXT",
        help="Several labels a row in one text: what stands between them.",
    ),
]
LabelOption = Annotated[
    str | None,
    _option(
        MEASURED,
        "--label",
        metavar="NAME",
        help="Of a model of several labels a row, the one that is audited: does it apply?",
    ),
]
DropUnlabelledOption = Annotated[
    bool,
    _option(ROWS, "--drop-unlabelled", help="Leave out rows whose label is missing or -1."),
]
CompareOption = Annotated[
    list[str] | None,
    _option(
        COMPARED,
        "--compare",
        metavar="METHOD",
        help="map (trained weights alone), dropout, last-layer, diagonal; of classes also "
        "temperature, ours-temperature. Once for each. [default: map, if there is a posterior]",
    ),
]
EnsembleOption = Annotated[
    list[str] | None,
    _option(
        COMPARED,
        "--ensemble",
        metavar="FOLDER",
        help="Checkpoint trained from another seed, to average with. Once for each.",
    ),
]
HeldOutOption = Annotated[
    str | None,
    _option(
        COMPARED,
        "--held-out",
        metavar="SPLIT",
        help="Of --data, neither trained on nor audited: a temperature is fitted there, and "
        "the noise of a regression without posterior. [default: validation]",
    ),
]
OutsideOption = Annotated[
    str | None,
    _option(
        COMPARED,
        "--outside",
        metavar="DATA",
        help="Rows that it was not made for, a place as for --data or a split of it (beside a file "
        "of predictions, another file): does doubt tell them apart? Labels are not read.",
    ),
]
ReferenceOption = Annotated[
    str | None,
    _option(
        COMPARED,
        "--reference",
        metavar="DATA",
        help="Earlier rows, not trained on (as for --outside; labels may be missing): what has "
        "changed since?",
    ),
]
TimeOption = Annotated[
    str | None,
    _option(
        COMPARED,
        "--time",
        metavar="NAME",
        help="Column with dates or numbers that say when, for a trend; with --reference.",
    ),
]
ByOption = Annotated[
    list[str] | None,
    _option(
        MEASURED,
        "--by",
        metavar="NAME",
        help="Look at groups by this column, or by 'predicted class', 'true class', 'text "
        "length (words)'; of a regression 'predicted value'. Once for each. [default: all]",
    ),
]
MaxErrorOption = Annotated[
    float | None,
    _option(
        MEASURED,
        "--max-error",
        metavar="SHARE",
        help="Find the threshold under which at most this share of the automatic answers is "
        "wrong; of a regression, off by more than --tolerance. [default: 0.05]",
    ),
]
MaxReviewOption = Annotated[
    float | None,
    _option(
        MEASURED,
        "--max-review",
        metavar="SHARE",
        help="Find the threshold above which at most this share of rows goes to a human. "
        "[default: 0.10]",
    ),
]
ScoreOption = Annotated[
    str | None,
    _option(
        MEASURED,
        "--score",
        metavar="SCORE",
        help="Doubt that both thresholds are on: confidence, total, aleatoric, epistemic, novelty "
        "(the last two need a posterior). A regression has its predicted deviation. [default: "
        "confidence]",
    ),
]
ToleranceOption = Annotated[
    float | None,
    _option(
        MEASURED,
        "--tolerance",
        metavar="NUMBER",
        help="Of a regression: the largest error that does no harm, in the unit of the labels. "
        "Without it nothing is said about whether errors are small enough.",
    ),
]
SetsOption = Annotated[
    float | None,
    _option(
        MEASURED,
        "--sets",
        metavar="SHARE",
        help="Find, for each row, the set of classes (of a regression, the interval) that "
        "misses the true one in at most this share of rows. [default: 0.05, of a regression "
        "0.10]",
    ),
]
ResamplesOption = Annotated[
    int,
    _option(
        MEASURED,
        "--resamples",
        metavar="N",
        help="Of the bootstrap behind the intervals. [default: 1000]",
    ),
]
SeedOption = Annotated[
    int,
    _option(MEASURED, "--seed", metavar="N", min=0, help="Of draws and resamples. [default: 0]"),
]
OutputOption = Annotated[
    Path | None,
    _option(
        RESULT,
        "--output",
        "-o",
        metavar="FOLDER",
        help="Write report.html, audit.json and pictures there. Without it nothing is written; "
        "the verdict is shown in any case.",
    ),
]
OverwriteOption = Annotated[
    bool, _option(RESULT, "--overwrite", help="Replace what an earlier run wrote to --output.")
]
FailIfOption = Annotated[
    list[str] | None,
    _option(
        RESULT,
        "--fail-if",
        metavar="CONDITION",
        help="Leave with exit code 3 if a figure is so: 'ece>0.05', or by an end of its "
        "interval 'ece.low>0.05', 'accuracy.high<0.9'. >, >=, <, <=; once for each condition, "
        "and one is enough to stop. Names of figures: docs/metrics.md.",
    ),
]
SaveReviewOption = Annotated[
    ReviewChoice | None,
    _option(
        RESULT,
        "--save-review",
        help="Keep a threshold with the posterior, for predict --review: that of --max-error "
        "or that of --max-review. Not where --fail-if stops.",
    ),
]
JsonOption = Annotated[
    bool, _option(RESULT, "--json", help="Print audit.json; all text goes to stderr.")
]
QuietOption = Annotated[
    bool, _option(RESULT, "--quiet", "-q", help="No text and no progress bars.")
]
BatchSizeOption = Annotated[
    int, _option(RUN, "--batch-size", metavar="N", min=1, help="Rows a batch. [default: 32]")
]
ModelOption = Annotated[
    str | None,
    _option(RUN, "--model", metavar="MODEL", help="Base model, in the place of the recorded one."),
]
DeviceOption = Annotated[
    str | None,
    _option(
        RUN,
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps. [default: the best there is]",
    ),
]
DebugOption = Annotated[bool, _option(RUN, "--debug", help="Show the traceback of an error.")]
