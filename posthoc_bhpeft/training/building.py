"""What is trained: a base with fresh adapters and a fresh head, put to the task of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from posthoc_bhpeft.checkpoints import load_base, load_tokenizer, new_tensors, resolve_model
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.quantization import HEADS
from posthoc_bhpeft.training.drawn import check_drawn_are_trained, drawn_modules, saving_drawn
from posthoc_bhpeft.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CLASSES = {
    Form.TEXT: None,
    Form.PROMPT: "AutoModelForCausalLM",
    Form.CHOICES: "AutoModelForMultipleChoice",
    Form.WORDS: "AutoModelForTokenClassification",
}
# peft has no name for multiple choice; a hybrid then finds the head itself.
_TASK_TYPES = {
    Form.TEXT: "SEQ_CLS",
    Form.PROMPT: "CAUSAL_LM",
    Form.CHOICES: None,
    Form.WORDS: "TOKEN_CLS",
}


def form_for(base: str, rows: TextData) -> Form:
    """How rows are put to a base model: those with choices as its architecture answers them.

    A language model answers with the letter of a choice; others score one text a choice, if
    transformers has a multiple-choice class for them. Words go to a token classifier.

    Args:
        base: "minilm", a folder, or a hub name.
        rows: texts, questions with choices, or words.

    Raises:
        ConfigError: the rows have choices, and the base answers neither way; or they are words, and
            transformers has no token classifier for the base.
        CheckpointError: the base has no config that can be read.
    """
    if rows.choices is None and rows.words is None:
        return Form.TEXT
    from transformers import (
        MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    )

    config = _config_of(base)
    if rows.words is not None:
        if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
            return Form.WORDS
        raise ConfigError(
            f"{rows.source or 'These rows'} have a label for every word, and transformers has no "
            f"token classifier for {base!r} ({config.model_type}). Give an encoder such as BERT or "
            "RoBERTa, or another base with a ...ForTokenClassification class."
        )
    named = tuple(config.architectures or ())
    if Form.PROMPT in map(Form.of, named):
        return Form.PROMPT
    if type(config) in MODEL_FOR_MULTIPLE_CHOICE_MAPPING:
        return Form.CHOICES
    raise ConfigError(
        f"{rows.source or 'These rows'} have choices, and {base!r} ({config.model_type}, "
        f"{', '.join(named) or 'no architecture'} in its config.json) can neither answer with a "
        "letter nor score choices. Give a causal language model (...ForCausalLM) or an encoder "
        "such as BERT or RoBERTa; or one text a row and --task text (choices=False)."
    )


def build(
    model: str,
    label_names: Sequence[str] | None,
    settings: TrainingSettings,
    peft_config: PeftConfig | None,
    form: Form = Form.TEXT,
    *,
    multi_label: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A base model with fresh head and fresh adapters, and its tokenizer.

    Args:
        model: "minilm", a folder, or a hub name.
        label_names: of the outputs of a classifier; None for regression.
        settings: what the adapters are.
        peft_config: in place of what `settings` describe.
        form: of the rows, which decides the class of the model.
        multi_label: any number of the labels may apply to a row.

    Raises:
        ConfigError: a part of the base is in no file, and would not be trained.
    """
    from peft import get_peft_model

    base = resolve_model(model)
    tokenizer = load_tokenizer(base)

    def load(heads: Sequence[str] = ()) -> PreTrainedModel:
        return load_base(
            base,
            label_names=label_names,
            tokenizer=tokenizer,
            dtype=settings.dtype,
            quantization=settings.quantization(heads),
            architecture=_CLASSES[form],
            multi_label=multi_label,
        )

    plain = load()
    drawn = new_tensors(plain)
    # What is trained whole stays in full, as heads do; only now it is known what else that is.
    others = [name for name in drawn_modules(plain) if name not in HEADS]
    if others and settings.quantize != "no":
        plain = load(others)
    config = peft_config or settings.peft_config(_TASK_TYPES[form])
    # An output layer of a language model is not learnt from a few answers.
    if form is not Form.PROMPT:
        config = saving_drawn(config, plain)
    tuned: PeftModel = get_peft_model(plain, config)
    check_drawn_are_trained(tuned, drawn, base)
    return tuned, tokenizer


class Scored(nn.Module):
    """A model that returns logits, as `Trainer` wants it: with its loss.

        loss = -mean_n log softmax(f_n)_{y_n}

    Args:
        model: returns logits `(N, C)`, see `TaskModel`. It is not copied.
    """

    accepts_loss_kwargs = False
    """For `Trainer`: the loss is a mean over the batch, whatever else there is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Loss and logits of a batch with labels `(N,)`."""
        logits = self.model(**inputs)
        return {"loss": functional.cross_entropy(logits.float(), labels), "logits": logits}


def _config_of(base: str) -> PretrainedConfig:
    from transformers import AutoConfig

    place = resolve_model(base)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Could not read the config of {base!r}: {error}") from error
    return config
