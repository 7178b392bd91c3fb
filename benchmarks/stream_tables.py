"""Finished cells as tables; nothing here runs a model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pages import markdown

from posthoc_bhpeft.audit import Interval
from posthoc_bhpeft.streams.scores import RoundScore, StreamScores

WARM, JOINT = "warm start", "joint"
NOTHING = "–"
# A gap smaller than this between warm start and joint is noise; no share of it is reported.
SMALLEST_GAP = 0.01


@dataclass(frozen=True)
class Result:
    """One method on one stream with one seed.

    Attributes:
        stream: its name.
        seed: of rows, weights and order.
        method: the name in the table.
        one_test: whether all rounds have the same test rows.
        rounds: names in order.
        seconds: of learning each round, on one thread; NaN, as bytes, where they were not kept.
        state_bytes: carried to the next round beside the trained weights, after each round.
        weights_bytes: of one copy of the trained weights, after each round.
        scores: every score, those on rounds not learnt yet included.
    """

    stream: str
    seed: int
    method: str
    one_test: bool
    rounds: tuple[str, ...]
    seconds: tuple[float, ...]
    state_bytes: tuple[float, ...]
    weights_bytes: tuple[float, ...]
    scores: tuple[RoundScore, ...]

    @classmethod
    def from_json(cls, cell: dict[str, Any]) -> Result:
        """A cell as it was written."""
        rounds = cell["rounds"]
        return cls(
            cell["stream"],
            cell["seed"],
            cell["method"],
            cell["one_test"],
            tuple(r["name"] for r in rounds),
            tuple(r["seconds"] for r in rounds),
            tuple(r["state_bytes"] for r in rounds),
            tuple(r["weights_bytes"] for r in rounds),
            tuple(RoundScore(**score) for score in cell["scores"]),
        )

    def past(self, after: int) -> tuple[RoundScore, ...]:
        """Scores on the rounds learnt so far, after round number `after`."""
        learnt = self.rounds[: after + 1]
        now = {s.tested: s for s in self.scores if s.trained == self.rounds[after]}
        return tuple(now[name] for name in learnt if name in now)

    def mean(self, name: str, after: int = -1) -> float:
        """Mean of a figure over the rounds learnt so far."""
        return statistics.mean(getattr(s, name) for s in self.past(after % len(self.rounds)))

    @property
    def backward(self) -> float | None:
        """Backward transfer after the last round; None where it means nothing."""
        if self.one_test or len(self.rounds) < 2:
            return None
        return StreamScores(self.scores).backward_transfer(self.rounds[-1])

    @property
    def forward(self) -> float | None:
        """Forward transfer; None where it means nothing or was not measured."""
        if self.one_test:
            return None
        return StreamScores(self.scores).forward_transfer(self.rounds[-1])

    @property
    def later_seconds(self) -> float:
        """Seconds of all rounds but the first, which most methods have in common."""
        return sum(self.seconds[1:])

    @property
    def state(self) -> tuple[float, float]:
        """State over weights, after the second round and after the last."""
        shares = [s / w for s, w in zip(self.state_bytes, self.weights_bytes, strict=True)]
        return shares[min(1, len(shares) - 1)], shares[-1]


def pick(
    results: Iterable[Result], *, stream: str | None = None, method: str | None = None
) -> list[Result]:
    """Those of a stream, of a method, or both."""
    return [r for r in results if stream in (None, r.stream) and method in (None, r.method)]


def names(values: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(values))


def gap_closed(method: float, warm: float, joint: float) -> float | None:
    """`(method - warm) / (joint - warm)`: 0 is warm start, 1 is training on everything.

    None where joint is not clearly above warm start, so that there is no gap to close.
    """
    gap = joint - warm
    return None if gap < SMALLEST_GAP else (method - warm) / gap


def spread(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def mean_or_nothing(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """The formatted mean, or a dash where a value is missing."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return NOTHING
    return form(statistics.mean(present))


def accuracy_of(results: Sequence[Result], method: str) -> float | None:
    """Mean over seeds of the average accuracy after the last round."""
    mine = pick(results, method=method)
    return statistics.mean(r.mean("accuracy") for r in mine) if mine else None


def closed(results: Sequence[Result], method: str) -> float | None:
    """`gap_closed` of a method on one stream, over the seeds that all three have."""
    shared = set.intersection(
        *({r.seed for r in pick(results, method=name)} for name in (method, WARM, JOINT))
    )
    common = [r for r in results if r.seed in shared]
    found = [accuracy_of(common, name) for name in (method, WARM, JOINT)]
    if any(value is None for value in found):
        return None
    return gap_closed(*(value for value in found if value is not None))


def share(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return NOTHING if value is None else f"{100 * value:.0f} %"


def signed(value: float) -> str:
    """A difference of accuracies in points."""
    return f"{100 * value:+.1f}"


def main_table(results: Sequence[Result]) -> str:
    """One stream: every method, every figure; mean ± standard deviation over seeds."""
    header = ["method", "seeds", "accuracy, %", "backward", "forward", "NLL", "ECE"]
    header += ["seconds ÷ warm start's", "state ÷ weights", "gap closed"]
    rows = []
    for method in names(r.method for r in results):
        mine = pick(results, method=method)
        rows.append(
            [
                method,
                str(len(mine)),
                spread([r.mean("accuracy") for r in mine]),
                mean_or_nothing([r.backward for r in mine], signed),
                mean_or_nothing([r.forward for r in mine], signed),
                f"{statistics.mean(r.mean('nll') for r in mine):.3f}",
                f"{statistics.mean(r.mean('ece') for r in mine):.3f}",
                mean_or_nothing(_times_warm(results, mine), "{:.2f}".format),
                _state(mine),
                share(closed(results, method)),
            ]
        )
    return markdown(header, rows)


def _times_warm(results: Sequence[Result], mine: Sequence[Result]) -> list[float]:
    warm = {r.seed: r.later_seconds for r in pick(results, method=WARM)}
    ratios = [r.later_seconds / warm[r.seed] for r in mine if warm.get(r.seed)]
    return [ratio for ratio in ratios if not math.isnan(ratio)]


def _state(mine: Sequence[Result]) -> str:
    known = [r.state for r in mine if not math.isnan(r.state[1])]
    if not known:
        return NOTHING
    second, last = (statistics.mean(values) for values in zip(*known, strict=True))
    # A growing head moves the ratio by a little; that is no growth of the state.
    if math.isclose(second, last, rel_tol=0.05):
        return f"{last:.2g}"
    return f"{second:.2g} to {last:.2g}"


def summary_table(results: Sequence[Result]) -> str:
    """All streams at once: average accuracy after the last round, and the gap closed."""
    streams = names(r.stream for r in results)
    header = ["method", *(f"{stream}: accuracy, gap closed" for stream in streams)]
    rows = []
    for method in names(r.method for r in results):
        line = [method]
        for stream in streams:
            there = pick(results, stream=stream)
            mine = pick(there, method=method)
            text = NOTHING
            if mine:
                text = spread([r.mean("accuracy") for r in mine])
                text += f", {share(closed(there, method))}"
            line.append(text)
        rows.append(line)
    return markdown(header, rows)


def curve_table(results: Sequence[Result]) -> str:
    """One stream: average accuracy over the rounds so far, after each round."""
    count = len(results[0].rounds)
    header = ["method", *(f"round {i + 1}" for i in range(count))]
    if len({r.rounds for r in results}) == 1:
        header = ["method", *(f"{i + 1}: {name}" for i, name in enumerate(results[0].rounds))]
    rows = []
    for method in names(r.method for r in results):
        mine = pick(results, method=method)
        means = [statistics.mean(r.mean("accuracy", i) for r in mine) for i in range(count)]
        rows.append([method, *(f"{100 * mean:.1f}" for mean in means)])
    return markdown(header, rows)


def order_table(results: Sequence[Result]) -> str:
    """One stream whose seeds have different orders: average accuracy at the end, by order."""
    orders = names(" → ".join(r.rounds) for r in sorted(results, key=lambda r: r.seed))
    rows = []
    for method in names(r.method for r in results):
        line = [method]
        for order in orders:
            mine = [
                r.mean("accuracy")
                for r in pick(results, method=method)
                if " → ".join(r.rounds) == order
            ]
            line.append(f"{100 * statistics.mean(mine):.1f}" if mine else NOTHING)
        rows.append(line)
    return markdown(["method", *orders], rows)


def cost_table(results: Sequence[Result], first: str) -> str:
    """A stream with one test set: worst deficit to joint from round `first` on, and the cost."""
    joint = {r.seed: r for r in pick(results, method=JOINT)}
    rows = []
    for method in names(r.method for r in results):
        mine = [r for r in pick(results, method=method) if r.seed in joint]
        if not mine or first not in mine[0].rounds:
            continue
        late = range(mine[0].rounds.index(first), len(mine[0].rounds))
        gaps = [
            statistics.mean(r.mean("accuracy", i) - joint[r.seed].mean("accuracy", i) for r in mine)
            for i in late
        ]
        costs = [sum(r.seconds) / sum(joint[r.seed].seconds) for r in mine]
        cost = mean_or_nothing([c for c in costs if not math.isnan(c)], "{:.2f}".format)
        rows.append([method, signed(min(gaps)), cost])
    return markdown(["method", f"worst less joint from {first} on", "seconds ÷ joint's"], rows)


def differences(ours: Sequence[Result], other: Sequence[Result], name: str) -> list[float]:
    """Ours less the other's, one a seed and round.

    Each tested round after the last one; with one test set, after every round but the first.
    """
    theirs = {r.seed: r for r in other}
    found = []
    for mine in ours:
        if mine.seed not in theirs:
            continue
        rounds = range(1, len(mine.rounds)) if mine.one_test else [len(mine.rounds) - 1]
        for after in rounds:
            pairs = zip(mine.past(after), theirs[mine.seed].past(after), strict=True)
            found += [getattr(a, name) - getattr(b, name) for a, b in pairs]
    return found


def interval(values: Sequence[float], *, resamples: int = 4000, level: float = 0.95) -> Interval:
    """Mean with its percentile bootstrap interval over the values given."""
    numbers = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(numbers), size=(resamples, len(numbers)))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(numbers[drawn].mean(axis=1), [tail, 1.0 - tail])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_table(results: Sequence[Result], ours: str) -> str:
    """One stream: ours less every other method, in accuracy and in NLL, with intervals."""
    rows = []
    for method in names(r.method for r in results):
        there = pick(results, method=method)
        accuracy = differences(pick(results, method=ours), there, "accuracy")
        nll = differences(pick(results, method=ours), there, "nll")
        if method == ours or not accuracy:
            continue
        points, nats = interval(accuracy), interval(nll)
        rows.append(
            [
                method,
                str(len(accuracy)),
                f"{signed(points.estimate)} ({signed(points.low)} to {signed(points.high)})",
                f"{nats.estimate:+.3f} ({nats.low:+.3f} to {nats.high:+.3f})",
            ]
        )
    return markdown([f"{ours} less", "pairs", "accuracy, points", "NLL"], rows)
