"""`TaskModel`: a model whose outputs are shaped otherwise, with a task that makes them `(N, C)`.

Everything in the package works on a model whose forward gives one row of outputs a sample. A task
is a frozen dataclass that says how to get there; `TaskModel` is the model and its task together,
one module, so that nothing else has to know. Blocks of the model keep their names below `model.`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """What a model is asked: a frozen dataclass of settings that JSON can hold."""

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Outputs `(N, C)` of a model for the inputs of a batch, without its labels."""
        ...


class TaskModel(nn.Module):
    """A model and what it is asked, as one module that returns `(N, C)`.

    ```python
    model = TaskModel(language_model, AnswerTokens.of(tokenizer, ("A", "B", "C", "D")))
    bayes = bayesianize(model, loader)
    bayes.save_pretrained("out")              # the adapter of language_model, and the task
    ```

    Args:
        model: A tuned model, with or without an adapter. It is not copied.
        task: Turns its outputs into `(N, C)`.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.training = model.training

    @property
    def config(self) -> Any:
        """That of the model, or `None`."""
        return getattr(self.model, "config", None)

    def forward(self, input_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """Outputs `(N, C)` of one batch."""
        given = inputs if input_ids is None else {"input_ids": input_ids, **inputs}
        return self.task.outputs(self.model, given)


def split_task(model: nn.Module) -> tuple[nn.Module, Task | None]:
    """A model without its task, and the task, if it has one."""
    return (model.model, model.task) if isinstance(model, TaskModel) else (model, None)


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model below a `PeftModel`, or the model itself."""
    get_base: Any = getattr(model, "get_base_model", lambda: model)
    base: nn.Module = get_base()
    return base
