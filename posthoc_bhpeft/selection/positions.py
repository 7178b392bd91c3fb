"""A label at every word: the width and temperature that texts with tokens hidden ask for.

`VisiblePrecision`, where the search begins, needs no log-odds of labels, which would take a
backward pass for every word. On top of the trained network it only softens, and a network that was
trained too briefly is too unsure already. The words that stay visible where others are hidden tell
which it is, as rows do in classification. Words of a text depend on each other, so a text counts
once: by the mean over those of its words that are judged.
"""

from __future__ import annotations

from dataclasses import replace

from posthoc_bhpeft.likelihood import Likelihood, Tokens
from posthoc_bhpeft.predictive.links import Tempered
from posthoc_bhpeft.selection.adjustment import Adjustment
from posthoc_bhpeft.selection.hidden import HiddenRows
from posthoc_bhpeft.selection.rule import PriorChoice

MOST_CLASSES = 256
"""With more, as in a vocabulary, the covariance of a word's outputs is too large to be formed."""


def tags_words(likelihood: Likelihood, n_outputs: int) -> bool:
    """Whether labels are tags of the words that are read, which hiding others leaves what they are.

    The next token of a text, or one of its translation, is another where its context is hidden.
    """
    return isinstance(likelihood, Tokens) and not likelihood.shift and n_outputs <= MOST_CLASSES


def asked(rows: HiddenRows, coldest: float) -> Adjustment:
    """Less sure predictions; else surer ones; else those at a precision that suits clearly better.

    Args:
        rows: Texts with tokens hidden.
        coldest: No lower temperature.
    """
    softer = rows.softening()
    if softer.needed:
        return softer
    surer = rows.sharpening(coldest, errors=2)
    return surer if surer.needed else rows.narrowing(errors=2)


def adjusted(choice: PriorChoice, found: Adjustment) -> PriorChoice:
    """The choice at the width and temperature found, with both reasons.

    Args:
        choice: One precision for all blocks.
        found: In units of that precision.
    """
    times = "That precision" if found.width == 1 else f"{found.width:.3g} times that precision"
    return replace(
        choice,
        precision={name: value * found.width for name, value in choice.precision.items()},
        reason=f"{choice.reason} {times} and {found.describe()}",
        link=None if found.temperature == 1 else Tempered(found.temperature),
    )
