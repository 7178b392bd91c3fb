"""What a checkpoint is asked: found from its files and its rows, and said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from posthoc_bhpeft.architectures import name_in_adapter
from posthoc_bhpeft.checkpoints import ADAPTER_FILE, read_json
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Likelihood, Tokens
from posthoc_bhpeft.saving import POSTERIOR_FILE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

UNNAMED = "LABEL_"
"""Start of the names that transformers gives to labels without one."""

REFUSED = "ForQuestionAnswering"

DONE = (
    "The command line does text classification, regression, several labels a row, a label for "
    "every word, multiple choice, and language models that answer with a letter or write a text."
)


def task_of(folder: Path) -> Form:
    """How the rows of a checkpoint are put, by the class of its base model.

    Raises:
        ConfigError: for a model that the command line cannot ask.
    """
    name = name_in_adapter(read_json(folder / ADAPTER_FILE)) or ""
    if name.endswith(REFUSED):
        raise ConfigError(
            f"{str(folder)!r} is an adapter of {name}. {DONE} In Python a task of your own may say "
            "what its outputs are: docs/tasks.md."
        )
    form = Form.of(name)
    return Form.RESPONSE if form is Form.PROMPT and fitted_to_write(folder) else form


def fitted_to_write(folder: Path) -> bool:
    """Whether the posterior of a language model is over whole texts, rather than answers."""
    path = folder / POSTERIOR_FILE
    likelihood = read_json(path).get("likelihood") if path.is_file() else None
    return isinstance(likelihood, dict) and likelihood.get("type") == Tokens.__name__


def likelihood_of(rows: TextData, task: Form) -> Likelihood:
    """Of the labels of these rows."""
    if task.writes:
        return Tokens(shift=task is Form.RESPONSE)
    if rows.words is not None:
        return Tokens()
    if rows.multi_label:
        return Bernoulli()
    return Gaussian() if rows.regression else Categorical()


def name_labels(model: PreTrainedModel | PeftModel, rows: TextData) -> None:
    """Write the names of labels, and that there may be several, into a classifier's config.

    An adapter that others trained knows only how many outputs there are. The posterior records
    the config, so that rows are read with the same names when they are predicted.
    """
    if rows.multi_label:
        model.config.problem_type = "multi_label_classification"
    unnamed = all(name.startswith(UNNAMED) for name in model.config.id2label.values())
    if unnamed and rows.choices is None and len(rows.label_names or ()) == model.config.num_labels:
        model.config.id2label = dict(enumerate(rows.label_names or ()))


def fitted_names(folder: Path) -> tuple[str, ...] | None:
    """The names of labels that a fit recorded; `None` where there is no posterior, or no name."""
    path = folder / POSTERIOR_FILE
    about = read_json(path).get("model") or {} if path.is_file() else {}
    names = about.get("id2label") or {}
    found = tuple(str(names[index]) for index in sorted(names, key=int))
    return None if all(name.startswith(UNNAMED) for name in found) else found
