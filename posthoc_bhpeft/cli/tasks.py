"""What a checkpoint is asked: found from its files and its rows, and said aloud."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from posthoc_bhpeft.architectures import LANGUAGE_MODELS, name_in_adapter
from posthoc_bhpeft.checkpoints import ADAPTER_FILE, read_json
from posthoc_bhpeft.data import EncodedRows, encode, encode_choices, encode_prompts
from posthoc_bhpeft.data.answers import letters
from posthoc_bhpeft.data.prompts import PROMPT_END
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from posthoc_bhpeft.saving import POSTERIOR_FILE
from posthoc_bhpeft.tasks import AnswerTokens, MultipleChoice, TaskModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

UNNAMED = "LABEL_"
"""Start of the names that transformers gives to labels without one."""

MULTIPLE_CHOICE = "ForMultipleChoice"
REFUSED = ("ForTokenClassification", "ForSeq2SeqLM", "ForQuestionAnswering")


class Form(str, Enum):
    """How rows are put to a model."""

    TEXT = "text"
    PROMPT = "prompt"
    CHOICES = "choices"


@dataclass(frozen=True)
class RowTask:
    """How the rows of a checkpoint are read and tokenised, and which model they go to.

    Attributes:
        form: Texts, prompts that end before an answer, or one text a choice.
    """

    form: Form = Form.TEXT

    @property
    def with_choices(self) -> bool:
        """Whether rows have choices."""
        return self.form is not Form.TEXT

    def encode(self, rows: TextData, tokenizer: Any, max_length: int) -> EncodedRows:
        """Tokenised rows; prompts are as long as the model allows, since they hold the choices."""
        if self.form is Form.PROMPT:
            return encode_prompts(rows, tokenizer)
        tokenize = encode_choices if self.form is Form.CHOICES else encode
        return tokenize(rows, tokenizer, max_length=max_length)

    def wrap(self, model: nn.Module, rows: TextData, tokenizer: Any) -> nn.Module:
        """The model with its task."""
        if self.form is Form.PROMPT:
            return TaskModel(model, answer_letters(tokenizer, rows))
        return TaskModel(model, MultipleChoice()) if self.form is Form.CHOICES else model

    def describe(self, rows: TextData) -> str:
        """Which task was taken, and why; for people."""
        if self.form is Form.PROMPT:
            return "task: a language model that answers with the letter of a choice"
        if self.form is Form.CHOICES:
            return "task: multiple choice, one text for each choice"
        if rows.multi_label:
            return "task: several labels a row, since labels are lists"
        return "task: regression" if rows.regression else "task: one of several classes"


def task_of(folder: Path) -> RowTask:
    """How the rows of a checkpoint are put, by the class of its base model.

    Raises:
        ConfigError: for a model that the command line cannot ask.
    """
    name = name_in_adapter(read_json(folder / ADAPTER_FILE)) or ""
    if name.endswith(REFUSED):
        raise ConfigError(
            f"{str(folder)!r} is an adapter of {name}. The command line does text classification, "
            "regression, several labels a row, multiple choice, and language models that answer "
            "with a letter. Use Python: docs/tasks.md."
        )
    if name.endswith(LANGUAGE_MODELS):
        return RowTask(Form.PROMPT)
    return RowTask(Form.CHOICES if name.endswith(MULTIPLE_CHOICE) else Form.TEXT)


def answer_letters(tokenizer: Any, rows: TextData) -> AnswerTokens:
    """Tokens of the letters of the rows' choices, with a space before them where that is one token.

    Raises:
        ConfigError: if a letter is more than one token.
    """
    # The names are those of all rows of the source, of which these may be few.
    longest = max(map(len, rows.choices or ((),)))
    names = letters(max(longest, len(rows.label_names or ())))
    try:
        return AnswerTokens.of(tokenizer, [f" {name}" for name in names], after=PROMPT_END)
    except ConfigError:
        return AnswerTokens.of(tokenizer, names, after=PROMPT_END)


def likelihood_of(rows: TextData) -> Likelihood:
    """Of the labels of these rows."""
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
