"""Learning from data that arrives in rounds, without forgetting the rounds before.

A `Round` brings rows, a `Learner` holds the model that goes from round to round, a method (see
`posthoc_bhpeft.streams.methods`) decides what is carried over, and `score` tells how well it does.
"""

from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.rounds import Heads, LabelSpace, Round
from posthoc_bhpeft.streams.scores import RoundScore, StreamScores, score

__all__ = ["Heads", "LabelSpace", "Learner", "Round", "RoundScore", "StreamScores", "score"]
