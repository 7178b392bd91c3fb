from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from posthoc_bhpeft.audit.regression import holds_real_predictions, read_real_predictions
from posthoc_bhpeft.errors import DataError, NonFiniteError
from tests.audit.regression.made import honest


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    path.write_text("mean,variance,target,text,site\n1.5,0.25,2,one,a\n-1,4,0.5,two,b\n")
    found = read_real_predictions(path)
    assert found.mean.tolist() == [1.5, -1.0]
    assert found.noise.tolist() == [0.25, 4.0]
    assert found.epistemic.tolist() == [0.0, 0.0]
    assert found.known_targets.tolist() == [2.0, 0.5]
    assert found.texts == ("one", "two")
    assert found.columns == {"site": ("a", "b")}
    assert found.about == {"Predictions": "Read from made.csv."}


def test_what_predict_writes(tmp_path: Path) -> None:
    rows = honest(5)
    path = tmp_path / "predictions.jsonl"
    with path.open("w") as file:
        for n in range(5):
            noise, all_of_it = rows.noise[n], rows.variance[n]
            total, aleatoric = (
                0.5 * math.log(2 * math.pi * math.e * v) for v in (all_of_it, noise)
            )
            row = {
                "index": 10 * n, "label": rows.known_targets[n], "prediction": rows.mean[n],
                "probabilities": None, "standard_deviation": math.sqrt(all_of_it),
                "total": total, "aleatoric": aleatoric, "epistemic": total - aleatoric,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    found = read_real_predictions(path)
    np.testing.assert_allclose(found.noise, rows.noise)
    np.testing.assert_allclose(found.epistemic, rows.epistemic, atol=1e-12)
    np.testing.assert_allclose(found.known_targets, rows.known_targets)
    assert found.columns == {}
    assert found.indices == (0, 10, 20, 30, 40)


def test_npz_without_targets(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    np.savez(path, mean=np.ones(3), standard_deviation=np.full(3, 2.0))
    found = read_real_predictions(path)
    assert found.variance.tolist() == [4.0, 4.0, 4.0]
    assert found.targets is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variance,target\n1,1\n", "no column 'mean', only variance, target"),
        ("mean,target\n1,1\n", "no column 'variance'.*Expected columns"),
        ("mean,variance\none,1\n", "column 'mean' must hold numbers"),
        ("mean,standard_deviation\n1,-1\n", "1 of 1 entries of 'standard_deviation' are below 0"),
        ("mean,variance\n1,0\n", "variances are 0"),
    ],
)
def test_files_of_something_else(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "made.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as error:
        read_real_predictions(path)
    assert str(path) in str(error.value)


def test_a_target_that_is_none_is_said_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    path.write_text("mean,variance,target\n1,1,1\n1,1,\n")
    with pytest.raises(NonFiniteError, match=r"made\.csv: 1 of 2 entries of targets"):
        read_real_predictions(path)


def test_a_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="as npz"):
        read_real_predictions(path)


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ('{"mean": 1, "variance": 1}', True),
        ('{"prediction": 1.5, "probabilities": null, "standard_deviation": 1}', True),
        ('{"prediction": 1, "probabilities": [0.1, 0.9], "standard_deviation": 1}', False),
        ('{"prediction": 1, "probabilities": [0.1, 0.9]}', False),
        ('{"p_a": 0.5, "p_b": 0.5, "variance": 1}', False),
    ],
)
def test_which_files_are_about_numbers(tmp_path: Path, line: str, numbers: bool) -> None:
    path = tmp_path / "made.jsonl"
    path.write_text(f"{line}\n{line}\n")
    assert holds_real_predictions(path) is numbers
