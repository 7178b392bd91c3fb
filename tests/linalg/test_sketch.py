"""Sketches keep inner products: exactly where nothing is mapped, else in the mean."""

import pytest
import torch

from posthoc_bhpeft.linalg import CountSketch
from tests.models import seeded


def test_short_vectors_stay_what_they_are():
    rows = torch.randn(4, 30, generator=seeded(0))
    sketch = CountSketch.make(30, 30, seeded(1))
    assert sketch.size == 30
    assert torch.equal(sketch(rows), rows)


def test_a_sketch_is_the_sum_of_signed_entries_of_each_bucket():
    rows = torch.randn(3, 50, generator=seeded(0)).double()
    sketch = CountSketch.make(50, 8, seeded(1))
    expected = torch.zeros(3, 8, dtype=torch.float64)
    for i, (bucket, sign) in enumerate(zip(sketch.buckets, sketch.signs, strict=True)):
        expected[:, bucket] += float(sign) * rows[:, i]
    assert torch.allclose(sketch(rows), expected)
    assert set(sketch.signs.tolist()) == {-1, 1}


@pytest.mark.parametrize("size", [8, 50])
def test_a_sketch_is_made_part_by_part_in_any_order(size):
    rows = torch.randn(3, 50, generator=seeded(0))
    sketch = CountSketch.make(50, size, seeded(1))
    short = rows.new_zeros(3, sketch.size)
    for place in (slice(40, 50), slice(0, 13), slice(13, 40)):
        sketch.add(short, rows[:, place], place)
    assert torch.allclose(short, sketch(rows), atol=1e-6)


def test_inner_products_are_right_in_the_mean_and_as_close_as_promised():
    x, y = torch.randn(2, 400, generator=seeded(0), dtype=torch.float64)
    size = 64
    found = torch.tensor(
        [
            float(torch.dot(*CountSketch.make(400, size, seeded(seed))(torch.stack([x, y]))))
            for seed in range(400)
        ]
    )
    bound = (2 / size) ** 0.5 * float(x.norm() * y.norm())
    assert found.std() <= 1.1 * bound
    assert abs(float(found.mean()) - float(x @ y)) < 3 * bound / 400**0.5
