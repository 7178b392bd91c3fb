"""How rows are put to a model: as texts, prompts, choices, words, or something to write on."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import nn

from posthoc_bhpeft.architectures import (
    LANGUAGE_MODELS,
    MULTIPLE_CHOICE,
    TOKEN_CLASSIFIERS,
    TRANSLATORS,
)
from posthoc_bhpeft.data.answers import letters
from posthoc_bhpeft.data.loader import MAX_LENGTH, EncodedRows, encode
from posthoc_bhpeft.data.pieces import encode_words
from posthoc_bhpeft.data.prompts import (
    PROMPT_END,
    PROMPT_LENGTH,
    encode_choices,
    encode_prompts,
)
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.data.writing import encode_responses, encode_translations
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.tasks import AnswerTokens, MultipleChoice, TaskModel


class Form(Enum):
    """What a row becomes.

    `TEXT`: a text or a pair of texts, for a classifier or a regression.
    `PROMPT`: a question with lettered choices that ends before the answer, for a language model.
    `CHOICES`: one text a choice, for a multiple-choice model.
    `WORDS`: words with a label for each, for a token classifier.
    `RESPONSE`: a prompt with the text to be written after it, for a language model.
    `TRANSLATION`: a text and the one to be made of it, for an encoder-decoder.
    """

    TEXT = "text"
    PROMPT = "prompt"
    CHOICES = "choices"
    WORDS = "words"
    RESPONSE = "response"
    TRANSLATION = "translation"

    @classmethod
    def of(cls, architecture: str | None) -> Form:
        """The form for a class of transformers; texts where it answers none of these ways."""
        ends: dict[Form, str | tuple[str, ...]] = {
            cls.PROMPT: LANGUAGE_MODELS,
            cls.CHOICES: MULTIPLE_CHOICE,
            cls.WORDS: TOKEN_CLASSIFIERS,
            cls.TRANSLATION: TRANSLATORS,
        }
        name = architecture or ""
        return next((form for form, end in ends.items() if name.endswith(end)), cls.TEXT)

    @property
    def with_choices(self) -> bool:
        """Whether rows have choices."""
        return self in (Form.PROMPT, Form.CHOICES)

    @property
    def writes(self) -> bool:
        """Whether the model writes a text."""
        return self in (Form.RESPONSE, Form.TRANSLATION)

    @property
    def usual_length(self) -> int:
        """Tokens at most where nobody says; prompts hold all choices, so they are long."""
        return PROMPT_LENGTH if self is Form.PROMPT or self.writes else MAX_LENGTH

    def encode(self, rows: TextData, tokenizer: Any, max_length: int) -> EncodedRows:
        """Tokenised rows, cut at so many tokens."""
        ways = {
            Form.TEXT: encode,
            Form.PROMPT: encode_prompts,
            Form.CHOICES: encode_choices,
            Form.WORDS: encode_words,
            Form.RESPONSE: encode_responses,
            Form.TRANSLATION: encode_translations,
        }
        return ways[self](rows, tokenizer, max_length=max_length)

    def wrap(self, model: nn.Module, rows: TextData, tokenizer: Any) -> nn.Module:
        """The model with its task."""
        if self is Form.PROMPT:
            return TaskModel(model, answer_letters(tokenizer, rows))
        return TaskModel(model, MultipleChoice()) if self is Form.CHOICES else model

    def outline(self, model: nn.Module, n_choices: int) -> nn.Module:
        """A model of shapes with a task of its shape, where no tokenizer is read.

        Raises:
            ConfigError: if a batch cannot be made up for the model.
        """
        if self is Form.CHOICES:
            raise ConfigError(
                "A multiple-choice model reads one text a choice, and how long those are cannot be "
                "told without rows. Use Python: estimate(model, loader), with make_loader("
                "encode_choices(rows, tokenizer), tokenizer)."
            )
        if self is Form.TRANSLATION:
            raise ConfigError(
                "An encoder-decoder reads one text and writes another, and how long those are "
                "cannot be told without rows. Use Python: estimate(model, loader), with batches of "
                "DataCollatorForSeq2Seq(tokenizer, model=model)."
            )
        # Which tokens they are changes no shape.
        tokens = tuple(range(n_choices))
        return TaskModel(model, AnswerTokens(tokens)) if self is Form.PROMPT else model

    def describe(self, rows: TextData) -> str:
        """Which task was taken, and why; for people."""
        if self is Form.PROMPT:
            return "task: a language model that answers with the letter of a choice"
        if self is Form.CHOICES:
            return "task: multiple choice, one text for each choice"
        if self is Form.RESPONSE:
            return "task: a language model that writes a text after a prompt"
        if self is Form.TRANSLATION:
            return "task: an encoder-decoder that makes one text of another"
        if self is Form.WORDS:
            return "task: token classification, one of several classes for each word"
        if rows.multi_label:
            return "task: several labels a row, each of which applies or not"
        return "task: regression" if rows.regression else "task: one of several classes"


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
