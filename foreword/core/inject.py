"""The one place where a prompt meets the model, and it is a gather."""

from dataclasses import dataclass

import torch

from foreword.core.prompts import Bank
from foreword.core.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """The prefix of each row: keys and values for every layer, which columns are real, and where the text starts.

    Column p of a row is logical position p, so a row shorter than the longest is masked on the right. `whole` promises
    that every column is real, which spares the masks.
    """

    keys_NBHPK: Float[Tensor, "N B H P K"]
    values_NBHPK: Float[Tensor, "N B H P K"]
    real_BP: Bool[Tensor, "B P"]
    start_B: Int[Tensor, "B"]
    whole: bool = False


def inject_soft(
    bank: Bank, task_B: Int[Tensor, "B"], slot_BS: Int[Tensor, "B S"], text_BSD: Float[Tensor, "B S D"]
) -> Float[Tensor, "B S D"]:
    """Put each row's own prompt into its slots; `slot_BS` is -1 where the row has text."""
    if bank.soft_TPD is None:
        return text_BSD
    row_X, column_X = (slot_BS >= 0).nonzero(as_tuple=True)
    # Flat rows and index_select: its gradient is one index_add, several times faster than that of a 2-D gather.
    at_X = task_B[row_X] * bank.soft_TPD.shape[1] + slot_BS[row_X, column_X]
    soft_XD = bank.soft_TPD.flatten(0, 1).index_select(0, at_X).to(text_BSD.dtype)
    return text_BSD.index_put((row_X, column_X), soft_XD)


def inject_prefix(bank: Bank, task_B: Int[Tensor, "B"], dtype: torch.dtype) -> PrefixBatch | None:
    """Gather each row's own keys and values; None when the bank holds no prefix. One prompt for all rows is a view."""
    if bank.keys_TNQHK is None or bank.values_TNQHK is None:
        return None
    rows, columns = task_B.shape[0], bank.keys_TNQHK.shape[2]
    real_BP = torch.arange(columns, device=task_B.device) < bank.prefix_length_T[task_B][:, None]
    return PrefixBatch(
        keys_NBHPK=_rows_of(bank.keys_TNQHK.to(dtype), task_B),
        values_NBHPK=_rows_of(bank.values_TNQHK.to(dtype), task_B),
        real_BP=real_BP,
        start_B=bank.start_T[task_B],
        whole=bank.size == 1 or rows == 0 or bool(real_BP.all()),
    )


def _rows_of(states_TNQHK: Float[Tensor, "T N Q H K"], task_B: Int[Tensor, "B"]) -> Float[Tensor, "N B H Q K"]:
    if states_TNQHK.shape[0] == 1:
        chosen = states_TNQHK.expand(task_B.shape[0], -1, -1, -1, -1)
    else:
        chosen = states_TNQHK.index_select(0, task_B)
    return chosen.permute(1, 0, 3, 2, 4)
