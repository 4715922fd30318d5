"""Score label words by chain-rule log-probabilities, and labels with several words by log-sum-exp.

If every label word of a row is one piece, the scores of its labels are logits, of which softmax makes the same
probabilities; otherwise, and always if the likelihood of a text is asked for, they are log-probabilities over the
vocabulary. Rows that share a plan of labels cost no Python loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch

from foreword.core.prompts import Bank
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Batch, Encoded, collate, prepare
from foreword.models.encoding.label_layout import Layout
from foreword.models.label_parts import groups_of, joined
from foreword.models.memory import fitting


@final
@dataclass(frozen=True, eq=False)
class Reads:
    """Hold which piece of which label is read at which place, for each distinct plan Q, padded, and the plan of each
    row.

    For each piece, `pass_QCWn` is the number of its model row among those of the row, `read_QCWn` its column after the
    answer, and `unique_QCWn` its index in the distinct pieces `ids_U`. Plans in `mean_Q` score a word by the mean over
    its pieces. `shift_QC` and `temperature_Q` calibrate the labels' scores; they are None if no plan calibrates.
    """

    layouts: tuple[Layout, ...]
    plan_B: Int[Tensor, "B"]
    ids_U: Int[Tensor, "U"]
    unique_QCWn: Int[Tensor, "Q C W n"]
    real_QCWn: Bool[Tensor, "Q C W n"]
    pass_QCWn: Int[Tensor, "Q C W n"]
    read_QCWn: Int[Tensor, "Q C W n"]
    single_Q: Bool[Tensor, "Q"]
    mean_Q: Bool[Tensor, "Q"]
    shift_QC: Float[Tensor, "Q C"] | None
    temperature_Q: Float[Tensor, "Q"] | None


@final
@dataclass(frozen=True, eq=False)
class Passes:
    """Hold the model rows `M` of a batch: the row of each, its plan and its pass in the plan's layout; and the first
    model row of each row."""

    row_M: Int[Tensor, "M"]
    plan_M: Int[Tensor, "M"]
    pass_M: Int[Tensor, "M"]
    first_B: Int[Tensor, "B"]


def score(
    lm: FrozenLM, encoded: Sequence[Encoded], bank: Bank | None, task_B: Int[Tensor, "B"]
) -> Float[Tensor, "B C"]:
    """Return the log-score of each label of each row, (B, C), differentiable in the bank; -inf where a row has fewer
    labels than others.

    Label words that are too many for one pass are read in parts, and rows that together look up too many logits are
    read separately, so that without gradients memory is bounded for any number of them.

    Raises: ConfigError for rows without label words, or with more slots than their prompts fill.
    """
    if not encoded:
        raise ConfigError("There are no rows to score; give at least one.")
    plans = {id(e.plan): e.plan for e in encoded}
    if any(plan is None for plan in plans.values()):
        raise ConfigError("A row has no label words to score; give the format label words, or the rows options.")
    longest = max(map(len, encoded)) + (0 if bank is None else bank.columns)
    trie = lm.kind == "masked" or lm.trie_fits(longest)
    groups = list(groups_of(encoded, trie))
    if len(groups) == 1 and groups[0][1] is None:
        return _score(lm, encoded, bank, task_B, trie)
    labels = max(plan.labels for plan in plans.values() if plan is not None)
    scored: list[Tensor] = []
    for rows, parts in groups:
        chosen, task = [encoded[i] for i in rows], task_B[torch.tensor(rows, device=task_B.device)]
        if parts is None:
            score_BC = _score(lm, chosen, bank, task, trie)
        else:
            words = [score(lm, [replace(e, plan=part) for e in chosen], bank, task) for part in parts.plans]
            score_BC = joined(chosen[0].plan, parts, torch.cat(words, 1))
        scored.append(torch.nn.functional.pad(score_BC, (0, labels - score_BC.shape[1]), value=-torch.inf))
    order = torch.tensor([i for rows, _ in groups for i in rows]).argsort()
    return torch.cat(scored)[order.to(scored[0].device)]


def _score(
    lm: FrozenLM, encoded: Sequence[Encoded], bank: Bank | None, task_B: Int[Tensor, "B"], trie: bool
) -> Float[Tensor, "B C"]:
    """Return what `score` returns, for rows that are read at once."""
    reads = _reads(encoded, trie, _parted(lm, encoded, bank, task_B))
    passes = _passes(reads)
    base = collate(encoded)
    batch, tree_MSS = _expand_masks(base, reads, passes) if lm.kind == "masked" else _append(base, reads, passes)
    inputs, prefix = prepare(lm, batch, bank, task_B[passes.row_M.to(task_B.device)], tree_MSS)
    hidden_MRD = lm.hidden_at(inputs, prefix)
    shape = hidden_MRD.shape[:2]
    logit_MRU = lm.piece_logits(hidden_MRD.flatten(0, 1), reads.ids_U).unflatten(0, shape)
    normaliser_MR = _normalisers(lm, hidden_MRD, reads, passes, logit_MRU.dtype)
    plan_B = reads.plan_B
    row_BCWn = (passes.first_B[:, None, None, None] + reads.pass_QCWn[plan_B]).to(lm.device)
    read_BCWn = reads.read_QCWn[plan_B].to(lm.device)
    value_BCWn = logit_MRU[row_BCWn, read_BCWn, reads.unique_QCWn[plan_B].to(lm.device)]
    if normaliser_MR is not None:
        value_BCWn = value_BCWn - normaliser_MR[row_BCWn, read_BCWn]
    score_BC = _labels(value_BCWn, reads.real_QCWn[plan_B].to(lm.device), reads.mean_Q[plan_B].to(lm.device))
    return _calibrated(score_BC, reads)


@torch.no_grad()
def score_all(
    lm: FrozenLM,
    encoded: Sequence[Encoded],
    bank: Bank | None,
    task_B: Int[Tensor, "B"],
    *,
    tokens_per_batch: int | None = None,
) -> Float[Tensor, "B C"]:
    """Return what `score` returns, for any number of rows without gradients, in batches of rows of similar length
    within a budget of tokens.

    When memory runs out, the batch is halved, with one line on stderr. Raises: ModelError if not even one row fits.
    """
    if not encoded:
        return torch.zeros(0, 0)
    cost_B = np.array([e.cost for e in encoded])
    order_B = np.argsort(-cost_B, kind="stable")
    labels = max(e.plan.labels if e.plan else 0 for e in encoded)
    result_BC: Tensor | None = None
    done, budget = 0, tokens_per_batch or lm.batch_tokens
    task_B = task_B.cpu()

    def scores_of(next_N: Int[np.ndarray, "N"], rows: int) -> Float[Tensor, "B C"]:
        taken = next_N[:rows]
        return score(lm, [encoded[i] for i in taken], bank, task_B[torch.from_numpy(taken)])

    while done < len(encoded):
        widest = int(cost_B[order_B[done]])
        next_N = order_B[done : done + max(1, budget // widest)]
        refusal = f"a single row of {widest} tokens. Use a smaller model, a lower max_length or --dtype bfloat16"
        part_BC, rows = fitting(partial(scores_of, next_N), len(next_N), 1, refusal, scale=widest)
        taken = next_N[:rows]
        budget = budget if rows == len(next_N) else widest * rows
        if result_BC is None:
            result_BC = part_BC.new_full((len(encoded), labels), -torch.inf)
        result_BC[torch.from_numpy(taken).to(part_BC.device), : part_BC.shape[1]] = part_BC
        done += len(taken)
    assert result_BC is not None, "at least one batch was scored"
    return result_BC


def _parted(lm: FrozenLM, encoded: Sequence[Encoded], bank: Bank | None, task_B: Int[Tensor, "B"]) -> list[bool]:
    """Return for each row whether a longer label word would make it so long that the model reads it differently: the
    words of such a row must not share a model row, so that each is scored as it would be alone."""
    if lm.begins_alike(1, lm.dims.context):
        return [False] * len(encoded)
    start_B = [0] * len(encoded) if bank is None else bank.start_T.cpu()[task_B.cpu()].tolist()
    parted = []
    for e, start in zip(encoded, start_B, strict=True):
        length = start + len(e.ids_S)
        parted.append(e.plan is not None and not lm.begins_alike(length, length + e.plan.longest - 1))
    return parted


def _reads(encoded: Sequence[Encoded], trie: bool, parted: Sequence[bool]) -> Reads:
    keys = [(id(e.plan), apart) for e, apart in zip(encoded, parted, strict=True)]
    number = {key: q for q, key in enumerate(dict.fromkeys(keys))}
    plans = {key: e.plan for key, e in zip(keys, encoded, strict=True)}
    kept = [plan for plan in plans.values() if plan is not None]
    layouts = tuple(plan.layout(trie, apart=apart) for plan, (_, apart) in zip(kept, plans, strict=True))
    shape = tuple(max(size) for size in zip(*(layout.piece_CWn.shape for layout in layouts), strict=True))

    def padded(arrays: Sequence[np.ndarray]) -> Tensor:
        whole = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for q, array in enumerate(arrays):
            c, w, n = array.shape
            whole[q, :c, :w, :n] = array
        return torch.from_numpy(whole)

    real_QCWn = padded([layout.real_CWn for layout in layouts])
    piece_QCWn = padded([layout.piece_CWn for layout in layouts])
    ids_U, unique_X = torch.unique(piece_QCWn[real_QCWn], return_inverse=True)
    unique_QCWn = torch.zeros_like(piece_QCWn)
    unique_QCWn[real_QCWn] = unique_X
    return Reads(
        layouts=layouts,
        plan_B=torch.tensor([number[key] for key in keys]),
        ids_U=ids_U,
        unique_QCWn=unique_QCWn,
        real_QCWn=real_QCWn,
        pass_QCWn=padded([layout.pass_CWn for layout in layouts]),
        read_QCWn=padded([layout.read_CWn for layout in layouts]),
        single_Q=torch.tensor([plan.single and not plan.normalised for plan in kept]),
        mean_Q=torch.tensor([plan.mean and plan.kind == "masked" for plan in kept]),
        shift_QC=_shifts([plan.shift for plan in kept], shape[0]),
        temperature_Q=_temperatures([plan.temperature for plan in kept]),
    )


def _shifts(shifts: Sequence[tuple[float, ...]], labels: int) -> Float[Tensor, "Q C"] | None:
    if not any(shifts):
        return None
    return torch.tensor([[*shift, *[0.0] * (labels - len(shift))] for shift in shifts], dtype=torch.float64)


def _temperatures(temperatures: Sequence[float]) -> Float[Tensor, "Q"] | None:
    if all(t == 1.0 for t in temperatures):
        return None
    return torch.tensor(temperatures, dtype=torch.float64)


def _calibrated(score_BC: Float[Tensor, "B C"], reads: Reads) -> Float[Tensor, "B C"]:
    """Return each row's scores as its plan calibrates them; labels that a row lacks stay at -inf."""
    if reads.shift_QC is not None:
        score_BC = score_BC + reads.shift_QC[reads.plan_B].to(score_BC)
    if reads.temperature_Q is not None:
        score_BC = score_BC / reads.temperature_Q[reads.plan_B, None].to(score_BC)
    return score_BC


def _passes(reads: Reads) -> Passes:
    passes_Q = torch.tensor([layout.passes for layout in reads.layouts])
    passes_B = passes_Q[reads.plan_B]
    first_B = passes_B.cumsum(0) - passes_B
    row_M = torch.repeat_interleave(torch.arange(len(passes_B)), passes_B)
    return Passes(row_M, reads.plan_B[row_M], torch.arange(len(row_M)) - first_B[row_M], first_B)


def _stacked(arrays: Sequence[np.ndarray], fill: int | bool) -> Tensor:
    """Stack arrays of different sizes, padded with `fill`."""
    shape = tuple(max(size) for size in zip(*(array.shape for array in arrays), strict=True))
    whole = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for q, array in enumerate(arrays):
        whole[(q, *map(slice, array.shape))] = array
    return torch.from_numpy(whole)


def _expand_masks(base: Batch, reads: Reads, passes: Passes) -> tuple[Batch, None]:
    """Return the model rows of a masked model, in which the answer's mask is repeated as often as the pass needs."""
    masks_QE = _stacked([layout.masks_E for layout in reads.layouts], 1)
    masks_M1 = masks_QE[passes.plan_M, passes.pass_M][:, None]
    most = int(masks_M1.max())
    answer_M1 = base.read_BR[passes.row_M]
    read_MR = answer_M1 + torch.minimum(torch.arange(most)[None], masks_M1 - 1)
    if most == 1:
        return _taken(base, passes.row_M, read_MR), None
    longest = base.ids_BS.shape[1]
    column_1S = torch.arange(longest + most - 1)[None]
    before = column_1S < answer_M1
    source_MS = torch.where(before, column_1S, torch.maximum(answer_M1, column_1S - masks_M1 + 1))
    inside_MS = source_MS < longest
    source_MS = source_MS.clamp(max=longest - 1)
    attend_MS = base.attend_BS[passes.row_M].gather(1, source_MS) & inside_MS
    batch = Batch(
        ids_BS=base.ids_BS[passes.row_M].gather(1, source_MS),
        slot_BS=base.slot_BS[passes.row_M].gather(1, source_MS),
        attend_BS=attend_MS,
        position_BS=(attend_MS.cumsum(1) - 1).clamp(min=0),
        read_BR=read_MR,
    )
    return batch, None


def _append(base: Batch, reads: Reads, passes: Passes) -> tuple[Batch, Bool[Tensor, "M S S"] | None]:
    """Return the model rows of a causal model or of a decoder, with the pass's pieces of label words after the text,
    and a mask of which columns see which (None if causal attention alone is right)."""
    tail_MK = _stacked([layout.tail_EK for layout in reads.layouts], -1)[passes.plan_M, passes.pass_M]
    most = tail_MK.shape[1]
    answer_M1 = base.read_BR[passes.row_M]
    count_M1 = (tail_MK >= 0).sum(1, keepdim=True)
    read_MR = answer_M1 + torch.minimum(torch.arange(most + 1)[None], count_M1)
    rows = _taken(base, passes.row_M, read_MR)
    if most == 0:
        return rows, None
    depth_MK = _stacked([layout.depth_EK for layout in reads.layouts], 0)[passes.plan_M, passes.pass_M]
    place_MK = answer_M1 + 1 + torch.arange(most)[None]

    def longer(row_MS: Tensor, tail_MK: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(row_MS, (0, most), value=fill).scatter(1, place_MK, tail_MK)

    batch = Batch(
        ids_BS=longer(rows.ids_BS, tail_MK.clamp(min=0), 0),
        slot_BS=longer(rows.slot_BS, torch.full_like(tail_MK, -1), -1),
        attend_BS=longer(rows.attend_BS, tail_MK >= 0, 0),
        position_BS=longer(rows.position_BS, answer_M1 + depth_MK, 0),
        read_BR=read_MR,
        source=rows.source,
    )
    tree_MSS = None
    if not all(layout.chain for layout in reads.layouts):
        sees_MKK = _stacked([layout.sees_EKK for layout in reads.layouts], False)[passes.plan_M, passes.pass_M]
        tree_MSS = _tree(sees_MKK, place_MK, batch.ids_BS.shape[1])
    return batch, tree_MSS


def _taken(base: Batch, row_M: Int[Tensor, "M"], read_MR: Int[Tensor, "M R"]) -> Batch:
    source = None if base.source is None else base.source.of_rows(row_M)
    taken = (base.ids_BS[row_M], base.slot_BS[row_M], base.attend_BS[row_M], base.position_BS[row_M])
    return Batch(*taken, read_MR, source)


def _tree(sees_MKK: Bool[Tensor, "M K K"], place_MK: Int[Tensor, "M K"], columns: int) -> Bool[Tensor, "M S S"]:
    """Return a mask of ones, except that among the pieces appended to a row each sees only itself and those that it
    continues."""
    tree_MSS = torch.ones(len(place_MK), columns, columns, dtype=torch.bool)
    row_M = torch.arange(len(place_MK))[:, None, None]
    tree_MSS[row_M, place_MK[:, :, None], place_MK[:, None, :]] = sees_MKK
    return tree_MSS


def _normalisers(
    lm: FrozenLM, hidden_MRD: Float[Tensor, "M R D"], reads: Reads, passes: Passes, dtype: torch.dtype
) -> Float[Tensor, "M R"] | None:
    """Return the log-sum-exp over the vocabulary at the columns read of rows that need it (a word of several pieces, or
    a normalised plan) and zeros elsewhere, or None if no row needs it."""
    if bool(reads.single_Q.all()):
        return None
    most = hidden_MRD.shape[1]
    reads_QE = torch.zeros(len(reads.layouts), max(layout.passes for layout in reads.layouts), dtype=torch.long)
    for q, layout in enumerate(reads.layouts):
        counts = layout.masks_E + (layout.tail_EK >= 0).sum(1)  # one mask, or the text's last column, and the tail
        reads_QE[q, : layout.passes] = torch.from_numpy(counts)
    wanted_M1 = reads_QE[passes.plan_M, passes.pass_M][:, None] * ~reads.single_Q[passes.plan_M][:, None]
    wanted_MR = (torch.arange(most)[None] < wanted_M1).to(hidden_MRD.device)
    found_X = lm.log_normaliser(hidden_MRD[wanted_MR])
    zeros_MR = torch.zeros(wanted_MR.shape, dtype=dtype, device=hidden_MRD.device)
    return zeros_MR.masked_scatter(wanted_MR, found_X.to(dtype))


def _labels(
    value_BCWn: Float[Tensor, "B C W n"], real_BCWn: Bool[Tensor, "B C W n"], mean_B: Bool[Tensor, "B"]
) -> Float[Tensor, "B C"]:
    """Combine pieces into words by sum or mean, and words into labels by log-sum-exp; return (B, C), with -inf for
    labels that a row does not have."""
    word_BCW = torch.where(real_BCWn, value_BCWn, 0).sum(-1)
    count_BCW = real_BCWn.sum(-1).clamp(min=1)
    word_BCW = word_BCW / torch.where(mean_B[:, None, None], count_BCW, 1)
    exists_BCW = real_BCWn[..., 0]
    label_BC = exists_BCW.any(-1)
    # a label that does not exist keeps finite words until the end: the gradient of a log-sum-exp of -inf is NaN
    word_BCW = word_BCW.masked_fill(~exists_BCW & label_BC[..., None], -torch.inf)
    return torch.logsumexp(word_BCW, -1).masked_fill(~label_BC, -torch.inf)
