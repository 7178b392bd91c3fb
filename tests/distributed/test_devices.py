"""Models that `accelerate` lays out, in one process: what works, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch.utils.data import DataLoader, DistributedSampler

from posthoc_bhpeft.curvature.partial import PartialFit
from posthoc_bhpeft.distributed import Processes, buckets
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.shards import Shard, own_part, processes_of, without
from tests.distributed.cases import fit, numbers, rows_of, whole
from tests.models import hybrid, mlp, seeded

CPU = torch.device("cpu")


def test_a_device_map_changes_nothing() -> None:
    rows = rows_of(hybrid(), 4)
    model = dispatch_model(hybrid(), {"": "cpu"}, force_hooks=True)
    one, other = numbers(fit(whole(rows), model)), numbers(fit(whole(rows)))
    assert all(one[name].equal(other[name]) for name in other)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_refused_by_name(where: str, tmp_path: Path) -> None:
    model = hybrid()
    rows = rows_of(model, 4)
    if where == "cpu":
        model = cpu_offload(model, execution_device=CPU)
    else:
        model = disk_offload(model, str(tmp_path), execution_device=CPU)
    with pytest.raises(ModelError, match=r"word_embeddings.*on no device.*max_memory"):
        fit(whole(rows), model)


class FullyShardedDataParallel(torch.nn.Module):
    """In the place of torch's own, which takes no CPU."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_model_wrapped_by_fsdp_is_refused_inside_another_too() -> None:
    model = torch.nn.Sequential(FullyShardedDataParallel(mlp(3, 3)))
    with pytest.raises(ModelError, match=r"'0' is sharded by FSDP.*save the adapter"):
        fit([], model)


def test_one_process_takes_every_loader_as_it_is() -> None:
    rows = [{"labels": torch.tensor(0)}] * 4
    sampler: Any = DistributedSampler(rows, num_replicas=2, rank=0)  # type: ignore[arg-type]
    loader: Any = DataLoader(rows, sampler=sampler)  # type: ignore[arg-type]
    assert own_part(loader) is loader
    assert processes_of(Shard([])) == Processes(0, 1)


def test_a_row_stays_with_the_first_that_has_it() -> None:
    assert without([[0, 1], [2, 0], [3, 3]], {1, 2}) == [[0], [3]]


def test_each_process_has_random_signs_of_its_own() -> None:
    def drawn(rank: int) -> list[int]:
        stream = Processes(rank, 3).stream(seeded(5))
        return torch.randint(0, 100, (20,), generator=stream).tolist()

    first, second, third = (drawn(rank) for rank in range(3))
    assert first == torch.randint(0, 100, (20,), generator=seeded(5)).tolist()
    assert len({tuple(one) for one in (first, second, third)}) == 3
    assert drawn(2) == third


def test_messages_hold_one_type_and_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthoc_bhpeft.distributed.BUCKET", 6)
    sizes = [(2, torch.float32), (3, torch.float32), (2, torch.float32), (1, torch.float64)]
    found = list(buckets([torch.zeros(n, dtype=dtype) for n, dtype in [*sizes, (9, torch.int)]]))
    assert [[len(one) for one in bucket] for bucket in found] == [[2, 3], [2], [1], [9]]


def test_an_estimator_without_sums_fits_in_one_process_only() -> None:
    class Silent:
        def add(self, observation: Any) -> None: ...

        def finish(self) -> Any: ...

    partial = PartialFit({"one": Silent()}, {"one": CPU})
    with pytest.raises(ConfigError, match=r"Silent has no methods sums\(\).*several processes"):
        partial.tensors("a fit by several processes")
