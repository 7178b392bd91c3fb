"""Rounds of a stream on the command line: found, listed, and their figures shown."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from posthoc_bhpeft.audit import stream_plot
from posthoc_bhpeft.cli.output import Output
from posthoc_bhpeft.data import RowSettings, open_source, read_rows
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.streams import (
    Every,
    Round,
    Shares,
    Stream,
    StreamReport,
    rounds_by_column,
    rounds_from_folder,
    rounds_in_order,
)
from posthoc_bhpeft.streams.feeds import limited, pooled

PICTURE = "accuracy.png"


@dataclass(frozen=True)
class Cut:
    """How rounds are made of the data.

    Attributes:
        by: column that tells rounds apart.
        every: how long a round lasts, if the column holds dates.
        rounds: their number, if it is to be so.
        splits: splits of one data set to cut; none stands for "train".
        shares: of rows to keep back.
        max_rows: training rows of a round, at most.
        max_test_rows: test rows of a round, at most.
    """

    by: str | None
    every: Every | None
    rounds: int | None
    splits: tuple[str, ...]
    shares: Shares
    max_rows: int | None
    max_test_rows: int | None

    def __post_init__(self) -> None:
        if self.every is not None and self.by is None:
            raise ConfigError(
                f"--every {self.every.value} needs the column with the dates: --by COLUMN."
            )
        if self.every is not None and self.rounds is not None:
            raise ConfigError("--every and --rounds are two ways to cut time; choose one.")
        if self.splits and not self.whole:
            raise ConfigError(
                "--split is for one data set that is cut with --by or --rounds; in a folder of "
                "rounds each file or subfolder is a round."
            )

    @property
    def whole(self) -> bool:
        """Whether DATA is one data set, to be cut."""
        return self.by is not None or self.rounds is not None


def find_rounds(rows: RowSettings, cut: Cut, out: Output) -> tuple[Round, ...]:
    """The rounds in the data, as the command line describes them.

    Raises:
        DataError: there are none, or rows cannot be read.
    """
    found = _cut(rows, cut, out) if cut.whole else _folder(rows, cut)
    return tuple(
        limited(one, max_rows=cut.max_rows, max_test_rows=cut.max_test_rows, seed=rows.seed)
        for one in found
    )


def show_plan(out: Output, rounds: Sequence[Round], known: Collection[str]) -> None:
    """List the rounds before the first of them is learnt."""
    out.table(
        f"{len(rounds)} rounds",
        ("", "round", "train", "test", "labels", ""),
        [
            (
                str(number),
                one.name,
                str(len(one.train)),
                str(len(one.test or ())),
                _listed(one.train.label_names or ()),
                "learnt before" if one.name in known else "",
            )
            for number, one in enumerate(rounds, 1)
        ],
    )


def show_round(out: Output, report: StreamReport, after: str, total: int) -> None:
    """The figures of every round after one of them."""
    lineage = next(one for one in report.rounds if one.name == after)
    title = (
        f"after round {lineage.index} of {max(total, lineage.index)}, {after}: "
        f"{lineage.note or f'{lineage.train.n} rows learnt in {lineage.seconds:.0f} s'}"
    )
    if not lineage.scores:
        out.say(f"{title}; no test rows to score so far")
        return
    own = {
        s.tested: s.accuracy for one in report.rounds for s in one.scores if s.trained == s.tested
    }
    rows = [
        (
            s.tested,
            str(s.n),
            _percent(s.accuracy),
            _percent(own.get(s.tested)),
            f"{s.nll:.3f}",
            f"{s.ece:.3f}",
        )
        for s in lineage.scores
    ]
    means = report.summary(after)
    rows.append(
        (
            "mean",
            "",
            _percent(means["average_accuracy"]),
            "",
            f"{means['average_nll']:.3f}",
            f"{means['average_ece']:.3f}",
        )
    )
    columns = ("test rows of", "rows", "accuracy", "when learnt", "NLL", "ECE")
    out.table(title, columns, rows)
    out.say(
        f"backward transfer {_points(means['backward_transfer'])}, forward transfer "
        f"{_points(means['forward_transfer'])}; {_bytes(lineage.state_bytes)} carried to the next "
        "round"
    )
    if lineage.merge_errors:
        worst = max(lineage.merge_errors.values())
        out.say(f"terms of the prior were merged, with a relative error of up to {worst:.2g}")


def write_picture(out: Output, stream: Stream) -> None:
    """Draw accuracy.png into the folder of the stream, if there is something to draw."""
    report = stream.report
    if not report.accuracies():
        return
    if importlib.util.find_spec("matplotlib") is None:
        out.say(f"{PICTURE} needs matplotlib: pip install 'posthoc-bhpeft[plots]'")
        return
    figure = stream_plot([one.name for one in report.rounds], report.accuracies())
    with tempfile.TemporaryDirectory(dir=stream.folder, prefix=".picture-") as scratch:
        figure.savefig(Path(scratch) / PICTURE)
        (Path(scratch) / PICTURE).replace(stream.folder / PICTURE)


def _folder(rows: RowSettings, cut: Cut) -> tuple[Round, ...]:
    return rounds_from_folder(
        rows.source,
        shares=cut.shares,
        text_column=rows.text_column,
        text_pair_column=rows.text_pair_column,
        label_column=rows.label_column,
        drop_unlabelled=rows.drop_unlabelled,
    )


def _cut(rows: RowSettings, cut: Cut, out: Output) -> tuple[Round, ...]:
    """One data set, cut into rounds."""
    source = open_source(rows.source)
    splits = cut.splits or ("train",)
    parts = [read_rows(rows, source, split) for split in splits]
    whole = pooled(parts) if len(parts) > 1 else parts[0]
    out.say(f"{len(whole)} rows of {source.name} ({whole.split}); {'; '.join(whole.notes)}")
    if left := [name for name in source.splits if name not in splits]:
        out.say(f"left alone: {', '.join(left)} (add one with --split)")
    if cut.by is not None:
        return rounds_by_column(
            whole, cut.by, every=cut.every, rounds=cut.rounds, shares=cut.shares
        )
    return rounds_in_order(whole, cut.rounds or 0, shares=cut.shares)


def _listed(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _points(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:+.1f} points"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
