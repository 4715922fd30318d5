"""Choose which rows, and which label words of a row, are read at once, so that scoring keeps within a memory of any
size."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from foreword.core.shapes import Float, Tensor
from foreword.models.encoding.batch import Encoded
from foreword.models.encoding.label_layout import LabelPlan, Parts

# What one pass may hold, in elements: padded tables of label words, logits that are looked up, and masks of tries.
TABLES, LOOKED_UP, MASKS = 2**22, 2**27, 2**28


def groups_of(encoded: Sequence[Encoded], trie: bool) -> Iterator[tuple[list[int], Parts | None]]:
    """Yield the rows to be read at once, as indices, with the parts of their plan if it is read in parts (else None):
    the rows of each such plan together, and the others in groups for which there is room."""
    whole: list[int] = []
    apart: dict[int, list[int]] = {}
    for i, e in enumerate(encoded):
        assert e.plan is not None, "rows without a plan were refused"
        if e.plan.parts(trie) is None:
            whole.append(i)
        else:
            apart.setdefault(id(e.plan), []).append(i)
    pending = [whole] if whole else []
    while pending:
        rows = pending.pop()
        if len(rows) == 1 or _fits([encoded[i] for i in rows], trie):
            yield rows, None
            continue
        rows = sorted(rows, key=lambda i: id(encoded[i].plan))
        pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    for rows in apart.values():
        plan = encoded[rows[0]].plan
        assert plan is not None, "rows without a plan were refused"
        yield rows, plan.parts(trie)


def _fits(encoded: Sequence[Encoded], trie: bool) -> bool:
    """Return whether rows may be read at once, by the size of their padded tables, of the logits that they look up, and
    of the masks of their tries."""
    count = Counter(id(e.plan) for e in encoded)
    plans = {id(e.plan): e.plan for e in encoded}
    layouts = {key: plan.layout(trie) for key, plan in plans.items() if plan is not None}
    shape = [max(size) for size in zip(*(layout.piece_CWn.shape for layout in layouts.values()), strict=True)]
    passes = sum(count[key] * layout.passes for key, layout in layouts.items())
    reads = max(int(layout.masks_E.max()) + layout.tail_EK.shape[1] for layout in layouts.values())
    columns = max(map(len, encoded))
    chain = all(layout.chain for layout in layouts.values())
    return (
        len(encoded) * math.prod(shape) <= TABLES
        and passes * reads * sum(layout.pieces for layout in layouts.values()) <= LOOKED_UP
        and (chain or passes * columns**2 <= MASKS)
    )


def joined(plan: LabelPlan | None, parts: Parts, word_BW: Float[Tensor, "B W"]) -> Float[Tensor, "B C"]:
    """Return the scores of labels, (B, C), from those of the words of all parts, in their order."""
    assert plan is not None, "parts are those of a plan"
    label_BW = torch.from_numpy(parts.label_W).to(word_BW.device).expand_as(word_BW)
    empty_BC = word_BW.new_full((len(word_BW), plan.labels), -torch.inf)
    most_BC = empty_BC.scatter_reduce(1, label_BW, word_BW.detach(), "amax")
    share_BW = (word_BW - most_BC.gather(1, label_BW)).exp()
    score_BC = torch.zeros_like(empty_BC).scatter_add(1, label_BW, share_BW).log() + most_BC
    if plan.shift:
        score_BC = score_BC + torch.tensor(plan.shift, dtype=torch.float64).to(score_BC)
    return score_BC / torch.tensor(plan.temperature, dtype=torch.float64).to(score_BC)
