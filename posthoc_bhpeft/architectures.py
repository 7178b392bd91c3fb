"""Which class of transformers a base model is: recorded by name, and found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

BY_TASK_TYPE = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
"""peft's task types that are no sequence classification."""

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of causal language models."""

TRANSLATORS = ("ForSeq2SeqLM", "ForConditionalGeneration")
"""Ends of the names of encoder-decoders."""

MULTIPLE_CHOICE = "ForMultipleChoice"
"""End of the names of classes that score one text a choice."""

TOKEN_CLASSIFIERS = "ForTokenClassification"
"""End of the names of classes that label every token."""

LABELLED = ("ForSequenceClassification", TOKEN_CLASSIFIERS)
"""Ends of the names of classes whose head has an output for every label."""


def name_of(base: nn.Module) -> str | None:
    """The name of a base model's class, if transformers has it."""
    import transformers

    name = type(base).__name__
    return name if getattr(transformers, name, None) is type(base) else None


def name_in_adapter(config: Mapping[str, Any]) -> str | None:
    """The class that an adapter's own config tells; `None` where a sequence classifier is meant."""
    by_task = BY_TASK_TYPE.get(str(config.get("task_type")))
    return by_task or (config.get("auto_mapping") or {}).get("base_model_class")


def class_named(name: str | None) -> Any:
    """The class of that name; a sequence classifier where it is unknown or no model."""
    import transformers
    from transformers import AutoModelForSequenceClassification, PreTrainedModel

    found = getattr(transformers, name or "", None)
    is_model = isinstance(found, type) and (
        issubclass(found, PreTrainedModel) or found.__name__.startswith("AutoModelFor")
    )
    return found if is_model else AutoModelForSequenceClassification


def scores_choices(name: str | None) -> bool:
    """Whether a class gives one number for each text of a question."""
    return name is not None and name.endswith(MULTIPLE_CHOICE)


def has_labels(name: str | None) -> bool:
    """Whether the head of a class has an output for every label, so that it is told their names."""
    return str(class_named(name).__name__).endswith(LABELLED)
