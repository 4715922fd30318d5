"""Lower the constant beginning of a format, slots included, to a prefix that is computed once and equals it.

Exact for causal models: what leads a row never sees what follows, so its keys and values are the same in every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from foreword.core.format import Format
from foreword.core.prompts import Bank, PrefixPrompt, Prompt, SoftPrompt, lower, stack
from foreword.errors import ConfigError, ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import collate, prepare
from foreword.models.encoding.encoder import Encoded, Encoder
from foreword.models.encoding.row_items import Gap


@final
@dataclass(frozen=True, eq=False)
class Compiled:
    """A prefix in place of the first `lead` columns of every row: encode with the same format, then `without_lead()`.

    `rest` is the soft prompt where slots remain after the lead (they keep their numbers), else None.
    """

    prefix: PrefixPrompt
    rest: SoftPrompt | None
    lead: int

    def bank(self, lm: FrozenLM) -> Bank:
        """A bank of this one prompt."""
        bank = stack([self.prefix], lm.embed, lm.device)
        return bank if self.rest is None else replace(bank, soft_TPD=self.rest.embed_PD[None].to(lm.device))


@torch.no_grad()
def compile_prompt(lm: FrozenLM, format: Format, prompt: Prompt) -> Compiled:
    """Raises: ModelError for a model with an encoder, or one that rotates long rows otherwise, where no such prefix
    exists; ConfigError where nothing constant leads."""
    if lm.kind == "seq2seq":
        raise ModelError(
            f"{lm.name!r} is an encoder-decoder model: what leads a row's source sees the text after it, so no prefix "
            "equals it; keep the soft prompt."
        )
    if lm.kind != "causal":
        raise ModelError(
            f"{lm.name!r} is a masked model: what leads a row sees the text after it, so no prefix equals it; keep the "
            "soft prompt, or load the model as causal."
        )
    lm.require_prefix()
    if isinstance(prompt, PrefixPrompt):
        raise ConfigError("The prompt to compile is a prefix already; use it as it is.")
    encoder = Encoder.build(lm, format)
    if prompt.length != encoder.prompt_length:
        raise ConfigError(
            f"The template has slots for {encoder.prompt_length} positions and the prompt given has {prompt.length}; "
            "compile it with the template it was learnt for."
        )
    lead = encoder.row.lead
    if not lead or not format.template.fields:
        raise ConfigError(
            f"In the template {format.template.source!r} nothing constant leads a field of the row, so there is "
            "nothing to compile; put the slot or the instruction before the first field."
        )
    if not lm.begins_alike(lead, lm.dims.context):
        raise ModelError(
            f"{lm.name!r} rotates long rows by other frequencies than short ones, so what leads a row of "
            f"{lm.dims.context} tokens, its context, has other keys than what leads a short one, and no prefix equals "
            "both: use the prompt as it is."
        )
    soft = lower(prompt, lm.embed)
    columns: list[torch.Tensor] = []
    filled = 0
    for item in encoder.row.items:
        if sum(map(len, columns)) == lead:
            break
        assert item.ids is not None, "the lead ends before the first field"
        if isinstance(item, Gap):
            filled = item.start + len(item.ids)
            columns.append(soft.embed_PD[item.start : filled].to(lm.device, lm.dtype))
        elif item.ids:
            columns.append(lm.embed(torch.tensor([item.ids], device=lm.device))[0])
    prefix = lm.prefix_from_embeddings(torch.cat(columns))
    return Compiled(prefix, soft if filled < soft.length else None, lead)


def compile_leads(lm: FrozenLM, encoded: Sequence[Encoded], bank: Bank | None) -> list[PrefixPrompt]:
    """What stands before the first field of each row given, as a prefix; row t is read with prompt t of the bank.

    Differentiable in the bank. Causal models that take a prefix only, and rows with a lead, which
    must begin alike (`FrozenLM.begins_alike`) wherever the prefix is used.
    """
    heads = [Encoded(e.ids_S[: e.lead], e.slot_S[: e.lead], e.lead - 1, None) for e in encoded]
    inputs, _ = prepare(lm, collate(heads), bank, torch.arange(len(heads)))
    keys_NBSHK, values_NBSHK = lm.states(inputs)
    return [
        PrefixPrompt({"self": (keys_NBSHK[:, t, : len(head.ids_S)], values_NBSHK[:, t, : len(head.ids_S)])}, e.lead)
        for t, (head, e) in enumerate(zip(heads, encoded, strict=True))
    ]
