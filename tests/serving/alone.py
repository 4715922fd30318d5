"""What a row gets alone: by the model's own scoring and the library's own greedy loop, nothing compiled or shared."""

from dataclasses import replace

import torch

from foreword.core.artefact import Artefact
from foreword.core.inject import inject_prefix
from foreword.core.prompts import stack
from foreword.core.shapes import Float, Tensor
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import collate, prepare
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.models.score import score


def alone_scores(lm: FrozenLM, made: Artefact, text: str) -> Float[Tensor, "C"]:
    """Each label's probability."""
    extra = made.value.start if made.form == "prefix" else 0
    row = Encoder.build(lm, made.format, extra).encode({"text": text})
    with torch.no_grad():
        return score(lm, [row], stack([made.value], lm.embed), torch.zeros(1, dtype=torch.long))[0].softmax(-1)


def alone_text(lm: FrozenLM, made: Artefact, text: str, new: int) -> str:
    """The text that follows."""
    extra = made.value.start if made.form == "prefix" else 0
    row = Encoder.build(lm, replace(made.format, labels=(), words=()), extra).encode_rows([PlainRow({"text": text})])
    bank = stack([made.value], lm.embed)
    zero = torch.zeros(1, dtype=torch.long)
    inputs, prefix = prepare(lm, collate(row), bank, zero)
    prefix = inject_prefix(bank, zero, lm.dtype) if prefix is not None else None
    [ids] = lm.generate(inputs, prefix, max_new_tokens=new, do_sample=False, pad_token_id=1).tolist()
    ids = ids[: next((n for n, id in enumerate(ids) if id in lm.stops), len(ids))]
    return lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
