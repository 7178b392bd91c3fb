"""Learning from data that arrives in rounds, without forgetting the rounds before.

A `Round` brings rows; `rounds_from_folder`, `rounds_by_column` and `rounds_in_order` make some. A
`Stream` learns them one after another and keeps each in a folder. Below it, a `Learner` holds the
model that goes from round to round, a method (see `posthoc_bhpeft.streams.methods`) decides what is
carried over, and `score` tells how well it does.
"""

from posthoc_bhpeft.streams.dates import Every
from posthoc_bhpeft.streams.feeds import (
    Shares,
    rounds_by_column,
    rounds_from_folder,
    rounds_in_order,
)
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.lineage import Lineage, StreamReport
from posthoc_bhpeft.streams.rounds import Heads, LabelSpace, Round
from posthoc_bhpeft.streams.scores import RoundScore, StreamScores, score
from posthoc_bhpeft.streams.stream import Stream

__all__ = [
    "Every",
    "Heads",
    "LabelSpace",
    "Learner",
    "Lineage",
    "Round",
    "RoundScore",
    "Shares",
    "Stream",
    "StreamReport",
    "StreamScores",
    "rounds_by_column",
    "rounds_from_folder",
    "rounds_in_order",
    "score",
]
