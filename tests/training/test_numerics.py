"""One comparison of two ways, against numpy in float64."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ftcore.training
from ftcore.training.numerics import TOLERANCE, equivalent, evaluating, fixed_random

BY_HAND = ".abs().max()"
NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6)


@given(NUMBERS, st.data(), st.sampled_from([1e-6, 1e-3, 0.5]), st.booleans())
def test_against_numpy(expected: list[float], data: st.DataObject, tolerance: float, norm: bool) -> None:
    found = data.draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=len(expected), max_size=len(expected)))
    one, other = np.array(found, np.float64), np.array(expected, np.float64)
    size = np.linalg.norm if norm else lambda values: np.abs(values).max()
    there = equivalent(torch.tensor(found, dtype=torch.float64), torch.tensor(other), tolerance, norm=norm)
    bound, difference = tolerance * size(other), size(one - other)
    if abs(difference - bound) > 1e-5 * max(difference, bound):  # norms are float32
        assert there == (difference <= bound)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (None, torch.ones(2), False),
        (torch.ones(2), None, False),
        (torch.ones(1), torch.ones(2), False),
        (torch.ones(0, 3), torch.ones(0, 3), True),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), False),
        (torch.tensor([1.0, float("inf")]), torch.ones(2), False),
        (torch.zeros(2), torch.zeros(2), True),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_what_is_no_number_or_another_shape(found: object, expected: object, same: bool, norm: bool) -> None:
    assert equivalent(found, expected, 1e-3, norm=norm) is same


def test_random_numbers_are_the_same_and_leave_the_run_its_own() -> None:
    before = torch.get_rng_state()
    assert torch.equal(fixed_random(2, 3), fixed_random(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_in_its_own_mode_again(training: bool) -> None:
    model = torch.nn.Dropout(0.5).train(training)
    with evaluating(model):
        assert (model.training, torch.is_grad_enabled()) == (False, False)
    assert (model.training, torch.is_grad_enabled()) == (training, True)


def test_tolerances_are_used_by_the_one_comparison_alone() -> None:
    """No part of the engine multiplies a tolerance with a largest number itself."""
    folder = Path(ftcore.training.__file__).parent
    files = [file for file in sorted(folder.rglob("*.py")) if file.name != "numerics.py"]
    nodes = [(file.name, node) for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    compared = [
        (name, node.lineno) for name, node in nodes if isinstance(node, ast.Compare) and BY_HAND in ast.unparse(node)
    ]
    assert compared == []
    assert sorted(TOLERANCE.values()) == [1e-6, 1e-4, 1e-2, 5e-2]
