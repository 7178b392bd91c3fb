"""Tasks whose models are not shaped `(N, C)`, and the module that makes them so."""

from posthoc_bhpeft.tasks.answers import AnswerTokens
from posthoc_bhpeft.tasks.choices import MultipleChoice, PairScores
from posthoc_bhpeft.tasks.task import Task, TaskModel, base_of, split_task

TASKS: tuple[type, ...] = (AnswerTokens, MultipleChoice, PairScores)
"""Tasks that a saved posterior may name."""

__all__ = [
    "TASKS",
    "AnswerTokens",
    "MultipleChoice",
    "PairScores",
    "Task",
    "TaskModel",
    "base_of",
    "split_task",
]
