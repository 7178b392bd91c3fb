"""Parts of a tensor that come one by one, in one place."""

import pytest
import torch

from posthoc_bhpeft.predictive.joined import Joined
from tests.models import seeded


@pytest.mark.parametrize("expected", [1, 7, 9, 30])
def test_parts_stand_after_each_other_whatever_was_expected(expected):
    whole = torch.randn(9, 2, 3, generator=seeded(0))
    joined = Joined(expected)
    for part in whole.split([4, 1, 4]):
        joined.add(part)
    assert torch.equal(joined.tensor(), whole)


def test_room_is_taken_once_where_enough_is_expected():
    joined = Joined(6)
    joined.add(torch.zeros(2, 5))
    place = joined.tensor().data_ptr()
    joined.add(torch.ones(4, 5))
    assert joined.tensor().data_ptr() == place
    assert joined.tensor().untyped_storage().nbytes() == 6 * 5 * 4


def test_a_part_may_change_afterwards():
    joined, part = Joined(2), torch.ones(2, 1)
    joined.add(part)
    part.zero_()
    assert joined.tensor().sum() == 2


def test_without_a_part_there_is_no_whole():
    with pytest.raises(ValueError, match="before any add"):
        Joined(3).tensor()
