"""Prompts are values: they stack, lower, compare, and keep their gradients.

python -m pytest tests/core/test_prompts.py
"""

import pytest
import torch

from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, lower, same_prompt, stack
from foreword.errors import ConfigError

TABLE_VD = torch.arange(12.0).reshape(6, 2)


def embed(ids_BS: torch.Tensor) -> torch.Tensor:
    """An embedding module that scales inside, as Gemma's does."""
    return TABLE_VD[ids_BS] * 3


def prefix(length: int, start: int = 7) -> PrefixPrompt:
    keys, values = torch.randn(2, 2, length, 3, 4)
    return PrefixPrompt({"self": (keys, values)}, start)


def test_words_lower_through_the_embedding_module() -> None:
    soft = lower(HardPrompt(torch.tensor([4, 1])), embed)
    assert soft.embed_PD.tolist() == [[24.0, 27.0], [6.0, 9.0]]
    assert lower(soft, embed) is soft


def test_a_bank_of_all_forms_pads_to_the_longest() -> None:
    long, short = prefix(3), prefix(1, start=2)
    bank = stack([HardPrompt(torch.tensor([4])), long, SoftPrompt(torch.ones(2, 2)), short], embed)
    assert bank.size == 4
    assert bank.soft_TPD is not None
    assert bank.keys_TNQHK is not None
    assert bank.values_TNQHK is not None
    assert bank.soft_TPD[0].tolist() == [[24.0, 27.0], [0.0, 0.0]]
    assert bank.soft_TPD[2].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert bank.prefix_length_T.tolist() == [0, 3, 0, 1]
    assert bank.start_T.tolist() == [0, 7, 0, 2]
    assert torch.equal(bank.keys_TNQHK[1], long.sites["self"][0])
    assert torch.equal(bank.values_TNQHK[3, :, :1], short.sites["self"][1])
    assert not bank.values_TNQHK[3, :, 1:].any()
    assert not bank.keys_TNQHK[0].any()


def test_absent_forms_stay_absent_and_an_empty_bank_is_refused() -> None:
    assert stack([SoftPrompt(torch.ones(1, 2))], embed).keys_TNQHK is None
    assert stack([prefix(1)], embed).soft_TPD is None
    empty = stack([HardPrompt(torch.tensor([], dtype=torch.long))], embed)
    assert empty.soft_TPD is None
    with pytest.raises(ConfigError, match="at least one prompt"):
        stack([], embed)


def test_stacking_keeps_gradients_apart() -> None:
    one, other = (SoftPrompt(torch.randn(n, 2, requires_grad=True)) for n in (2, 3))
    bank = stack([one, other], embed)
    assert bank.soft_TPD is not None
    bank.soft_TPD[1].sum().backward()
    assert other.embed_PD.grad is not None
    assert other.embed_PD.grad.eq(1).all()
    assert not one.embed_PD.grad.any()  # type: ignore[union-attr]


def test_equality_is_of_form_and_bits() -> None:
    keys, values = torch.randn(2, 2, 2, 3, 4)
    a, b = (PrefixPrompt({"self": (keys.clone(), values.clone())}, 2) for _ in range(2))
    assert same_prompt(a, b)
    assert not same_prompt(a, PrefixPrompt(a.sites, 0))
    assert not same_prompt(a, PrefixPrompt({"self": (keys, values + 1e-6)}, 2))
    ids, soft = HardPrompt(torch.tensor([1, 2])), SoftPrompt(torch.ones(2, 2))
    assert same_prompt(ids, HardPrompt(torch.tensor([1, 2])))
    assert same_prompt(soft, SoftPrompt(torch.ones(2, 2)))
    assert not same_prompt(ids, soft)
    assert not same_prompt(soft, SoftPrompt(torch.zeros(2, 2)))
