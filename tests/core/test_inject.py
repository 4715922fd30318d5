"""The gather: each row gets its own prompt, and a prompt gets the gradient of its own rows.

python -m pytest tests/core/test_inject.py
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from foreword.core.inject import PrefixBatch, inject_prefix, inject_soft
from foreword.core.prompts import Bank, PrefixPrompt, SoftPrompt, stack


def no_embedding(ids: torch.Tensor) -> torch.Tensor:
    raise AssertionError(f"nothing to embed: {ids}")


def soft_bank(*lengths: int, width: int = 3) -> Bank:
    return stack([SoftPrompt(torch.randn(length, width, dtype=torch.float64)) for length in lengths], no_embedding)


def prefix(length: int, start: int | None = None) -> PrefixPrompt:
    keys, values = torch.randn(2, 2, length, 3, 4, dtype=torch.float64)
    return PrefixPrompt({"self": (keys, values)}, length if start is None else start)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_slots_hold_the_row_s_own_prompt_and_text_stays(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    bank = soft_bank(*lengths)
    assert bank.soft_TPD is not None
    task = [data.draw(st.integers(0, len(lengths) - 1)) for _ in range(rows)]
    slots = [[data.draw(st.integers(-1, lengths[t] - 1)) for _ in range(columns)] for t in task]
    text_BSD = torch.randn(rows, columns, 3, dtype=torch.float64)
    out_BSD = inject_soft(bank, torch.tensor(task), torch.tensor(slots), text_BSD)
    for b, t in enumerate(task):
        for s, slot in enumerate(slots[b]):
            assert torch.equal(out_BSD[b, s], text_BSD[b, s] if slot < 0 else bank.soft_TPD[t, slot])


def test_text_is_returned_untouched_where_the_bank_has_no_soft_prompt() -> None:
    bank = stack([prefix(2)], no_embedding)
    text_BSD = torch.randn(2, 3, 4)
    assert inject_soft(bank, torch.tensor([0, 0]), torch.full((2, 3), -1), text_BSD) is text_BSD
    assert inject_prefix(soft_bank(2), torch.tensor([0]), torch.float64) is None


def test_gradients_reach_the_prompts_used_and_no_other_twice_over() -> None:
    task_B, slot_BS = torch.tensor([2, 0, 2]), torch.tensor([[0, -1, 1], [-1, 0, -1], [1, 1, 0]])
    text_BSD = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    soft_TPD = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def loss(soft_TPD: torch.Tensor, text_BSD: torch.Tensor) -> torch.Tensor:
        bank = Bank(soft_TPD, None, None, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
        return inject_soft(bank, task_B, slot_BS, text_BSD).pow(3).sum()

    assert gradcheck(loss, (soft_TPD, text_BSD))
    assert gradgradcheck(loss, (soft_TPD, text_BSD))
    (grad,) = torch.autograd.grad(loss(soft_TPD, text_BSD), soft_TPD)
    assert grad[1].abs().max() == 0
    assert grad[0, 1].abs().max() == 0
    assert (grad[2] != 0).all()


def by_row(batch: PrefixBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, B, H, P, K) keys and values, as the layers get them one by one."""
    keys, values = zip(*(batch.of_layer(n) for n in range(len(batch.keys_NUHPK))), strict=True)
    return torch.stack(keys), torch.stack(values)


@pytest.mark.parametrize("lengths", [(2, 0, 3), (2,), (3, 3)])
def test_prefix_columns_are_the_row_s_own_and_padding_is_not_real(lengths: tuple[int, ...]) -> None:
    prompts = [prefix(length, start=length + 1) for length in lengths]
    task = [(3 * b + 1) % len(lengths) for b in range(5)]
    batch = inject_prefix(stack(prompts, no_embedding), torch.tensor(task), torch.float64)
    assert batch is not None
    assert batch.whole == bool(batch.real_BP.all())
    assert batch.start_B.tolist() == [lengths[t] + 1 for t in task]
    for b, t in enumerate(task):
        assert batch.real_BP[b].tolist() == [p < lengths[t] for p in range(max(lengths))]
        keys_NPHK, values_NPHK = prompts[t].sites["self"]
        real = batch.real_BP[b]
        keys_NBHPK, values_NBHPK = by_row(batch)
        assert torch.equal(keys_NBHPK[:, b, :, real].transpose(1, 2), keys_NPHK)
        assert torch.equal(values_NBHPK[:, b, :, real].transpose(1, 2), values_NPHK)


def test_one_prompt_for_all_rows_is_not_copied() -> None:
    bank = stack([prefix(2)], no_embedding)
    one = inject_prefix(bank, torch.zeros(64, dtype=torch.long), torch.float64)
    assert one is not None
    assert bank.keys_TNQHK is not None
    keys_BHPK, _ = one.of_layer(1)
    assert keys_BHPK.shape[0] == 64
    assert keys_BHPK.untyped_storage().data_ptr() == bank.keys_TNQHK.untyped_storage().data_ptr()


def test_prefix_gradient_is_the_sum_over_the_prompt_s_rows() -> None:
    for prompts, task in (([prefix(2), prefix(1)], [0, 1, 0]), ([prefix(2)], [0, 0, 0])):
        leaves = [p.sites["self"][0].requires_grad_() for p in prompts]
        batch = inject_prefix(stack(prompts, no_embedding), torch.tensor(task), torch.float64)
        assert batch is not None
        keys_NBHPK, _ = by_row(batch)
        weight = torch.randn_like(keys_NBHPK)
        (keys_NBHPK * weight).sum().backward()
        for t, leaf in enumerate(leaves):
            rows = [b for b, own in enumerate(task) if own == t]
            expected = weight[:, rows, :, : leaf.shape[1]].sum(1).transpose(1, 2)
            assert leaf.grad is not None
            assert torch.allclose(leaf.grad, expected)
