"""The carried posterior's predictions: of the rows asked for, in their order."""

from __future__ import annotations

import torch

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.streams.methods import CarriedPosterior
from tests.streams.tiny import learner, round_of


def test_predictions_are_in_the_order_of_the_rows():
    run = CarriedPosterior().start(learner())
    one = round_of("one")
    run.learn(one, 0)
    # Short texts first: batches go from long to short.
    rows = TextData(tuple(" ".join(["kind meal slow"] * n) for n in (1, 4, 2, 5, 3)))
    found = run.predict("one", rows, batch_size=2)
    expected = run.learner.logits("one", rows)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in expected.tolist()}) == len(rows)
    torch.testing.assert_close(run.probabilities("one", rows), found.probabilities.double())
