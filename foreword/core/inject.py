"""Give each row of a batch its own prompt: gather soft prompts into slots, and prefixes into keys and values.

Soft prompts enter the model here alone. Prefixes enter here or as rows of a key-value cache (`core.kv_cache`); either
way the attention (`models.hf.prefix_attention`) puts them before a row's own keys and values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from foreword.core.prompts import Bank
from foreword.core.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """Hold the prefix of each row: keys and values for every layer, which columns are real, and where the text starts.

    Holds `U` distinct prefixes; `which_B[b]` is the index of row b's. If None, there is one per row or one for all
    rows. Column p of a prefix is logical position p, so a prefix shorter than the longest is masked on the right.
    `whole` promises that every column is real, which spares the masks. All this is of the site "self"; `others` has an
    encoder-decoder model's other sites.
    """

    keys_NUHPK: Float[Tensor, "N U H P K"]
    values_NUHPK: Float[Tensor, "N U H P K"]
    real_BP: Bool[Tensor, "B P"]
    start_B: Int[Tensor, "B"]
    whole: bool = False
    which_B: Int[Tensor, "B"] | None = None
    others: Mapping[str, "PrefixBatch"] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        return self.real_BP.shape[1]

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        # Taken apart once: the gradient of one layer's slice alone would be a tensor of all layers.
        return list(zip(self.keys_NUHPK.unbind(0), self.values_NUHPK.unbind(0), strict=True))

    def of_layer(self, layer: int) -> tuple[Float[Tensor, "B H P K"], Float[Tensor, "B H P K"]]:
        """Return each row's own keys and values of a layer; one prefix for all rows is a view."""
        keys, values = (self._of_rows(states) for states in self._layers[layer])
        return keys, values

    def _of_rows(self, states_UHPK: Tensor) -> Tensor:
        if self.which_B is not None:
            return states_UHPK.index_select(0, self.which_B.to(states_UHPK.device))
        return states_UHPK.expand(self.start_B.shape[0], -1, -1, -1)


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
    """Return each row's own keys and values; None if the bank holds no prefix. The attention gathers them by layer."""
    prefixes = {site: inject_prefix(other, task_B, dtype) for site, other in bank.others.items()}
    others = {site: prefix for site, prefix in prefixes.items() if prefix is not None}
    if bank.keys_TNQHK is None or bank.values_TNQHK is None:
        return _no_columns(task_B, dtype, others) if others else None
    rows, columns = task_B.shape[0], bank.keys_TNQHK.shape[2]
    real_BP = torch.arange(columns, device=task_B.device) < bank.prefix_length_T[task_B][:, None]
    return PrefixBatch(
        keys_NUHPK=bank.keys_TNQHK.to(dtype).permute(1, 0, 3, 2, 4),
        values_NUHPK=bank.values_TNQHK.to(dtype).permute(1, 0, 3, 2, 4),
        real_BP=real_BP,
        start_B=bank.start_T[task_B],
        whole=bank.size == 1 or rows == 0 or bool(real_BP.all()),
        which_B=None if bank.size == 1 else task_B,
        others=others,
    )


def _no_columns(task_B: Int[Tensor, "B"], dtype: torch.dtype, others: Mapping[str, PrefixBatch]) -> PrefixBatch:
    """Return a prefix without columns at the site "self", beside those of the other sites."""
    rows, device = task_B.shape[0], task_B.device
    nothing = torch.zeros(0, 1, 1, 0, 1, dtype=dtype, device=device)
    real_BP = torch.zeros(rows, 0, dtype=torch.bool, device=device)
    start_B = torch.zeros(rows, dtype=torch.long, device=device)
    return PrefixBatch(nothing, nothing, real_BP, start_B, whole=True, others=others)
