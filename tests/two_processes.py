"""Run by torchrun: trains under DistributedDataParallel and compares with the loop by hand."""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

from tests.test_penalized import Quadratic, assert_equal_weights, by_hand, frozen_dropout, make
from tests.tuned import tuned


def main(accumulate: int) -> None:
    """Eight rows a step, spread over two processes and `accumulate` batches each."""
    model, penalty = frozen_dropout(tuned()), Quadratic()
    with TemporaryDirectory() as folder:
        trainer = make(
            model, folder, batch_size=4 // accumulate, accumulate=accumulate, penalty=penalty
        )
        trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    assert {name for _, name, _ in penalty.calls} == {type(model).__name__}
    assert_equal_weights(model, by_hand(Quadratic(), batch_size=8))


if __name__ == "__main__":
    main(int(sys.argv[1]))
