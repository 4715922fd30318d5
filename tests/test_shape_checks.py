"""The shapes in signatures are checked under pytest. Run: python -m pytest tests/test_shape_checks.py"""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from foreword.core.prompts import HardPrompt, SoftPrompt
from foreword.inference.scoring import ScoreRequest
from foreword.tasks.label_metrics import accuracy


def test_an_array_of_another_rank_or_kind_is_refused():
    assert accuracy(np.array([[0.0, 1.0]]), np.array([1])) == 1.0
    for score_BC, label_B in ((np.zeros(2), np.zeros(2, int)), (np.zeros((1, 2)), np.zeros(1))):
        with pytest.raises(TypeCheckError):
            accuracy(score_BC, label_B)


def test_dimensions_of_one_name_are_one_number():
    with pytest.raises(TypeCheckError):
        accuracy(np.zeros((2, 3)), np.zeros(3, int))


def test_fields_of_a_value_are_checked():
    assert SoftPrompt(torch.zeros(2, 3)).length == 2
    for make in (lambda: SoftPrompt(torch.zeros(3)), lambda: HardPrompt(torch.zeros(3))):
        with pytest.raises(TypeCheckError):
            make()


def test_what_has_no_shapes_is_left_as_it_is():
    assert not hasattr(ScoreRequest.encode, "__wrapped__")
