"""Encode rows after their nearest examples, as many as fit; an example never stands before a row of the same texts."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword.core.demos import Example, with_demos
from foreword.core.format import Format
from foreword.core.shapes import Float, Int, Tensor
from foreword.core.template import Field, Template, written
from foreword.core.values import Neighbours
from foreword.errors import ArtefactError, ConfigError, DataError
from foreword.inference.features import encode_rows, row_features
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.tasks.rows import Row


def embeddings(lm: FrozenLM, form: Format, rows: Sequence[Row], encoder: str | None) -> Float[Tensor, "N D"]:
    """Return the mean hidden states of rows, scaled to length 1.

    They are those of the model itself over the task's template, or of the model `encoder` over the row's fields.

    Raises: ModelError if the encoder cannot be loaded.
    """
    form = replace(form.without_labels(), template=form.template.without_demos())
    if encoder is not None:
        from foreword.models.load import load

        lm = load(encoder)
        fields = " ".join(written(Field(name, True)) for name in form.template.fields)
        form = Format(Template.parse(fields).for_kind(lm.kind))
    rows = [replace(row, options=()) for row in rows]
    return torch.nn.functional.normalize(row_features(lm, form, rows, "mean"), dim=-1)


def nearest(value: Neighbours, rows: Sequence[Row], embed_BD: Float[Tensor, "B D"]) -> list[list[int]]:
    """Return the examples of each row, the nearest first; examples with the row's own texts are left out."""
    results = []
    for row, order_N in zip(rows, _order(value, embed_BD).tolist(), strict=True):
        others = (i for i in order_N if not same_texts(value.examples[i], row))
        results.append([i for i, _ in zip(others, range(value.count), strict=False)])
    return results


def _order(value: Neighbours, embed_BD: Float[Tensor, "B D"]) -> Int[Tensor, "B N"]:
    if embed_BD.shape[1] != value.embed_ND.shape[1]:
        raise ArtefactError(
            f"The artefact's examples have vectors of {value.embed_ND.shape[1]} numbers, and the model that reads rows "
            f"gives {embed_BD.shape[1]}; the artefact is damaged, or was made for another model."
        )
    return (embed_BD @ value.embed_ND.to(embed_BD).T).argsort(dim=1, descending=True, stable=True)


def same_texts(example: Example, row: Row) -> bool:
    return all(row.fields.get(name) == text for name, text in example.fields.items())


def encode_near(lm: FrozenLM, value: Neighbours, form: Format, rows: Sequence[Row]) -> tuple[list[Encoded], list[int]]:
    """Encode rows with their examples, and return how many examples each row has.

    Examples that do not fit are left out whole, the farthest first, and a row is never cut to make room for an example.
    """
    if not rows:
        return [], []
    bare = replace(form, template=form.template.without_demos())
    plain = encode_rows(lm, bare, rows)
    chosen = nearest(value, rows, embeddings(lm, form, rows, value.encoder))
    encoded, shown = [], []
    for row, alone, near in zip(rows, plain, chosen, strict=True):
        count, result = len(near), None
        while count and result is None:
            count = min(count, _likely(lm, near[:count], value, alone))
            result = _try(lm, value, form, row, near[:count], alone.cut) if count else None
            count -= result is None and count > 0
        # Rows that differ before their first field share no beginning, and those of one task share their labels' plan.
        encoded.append(replace(alone if result is None else result, plan=alone.plan, shared=0))
        shown.append(count if result is not None else 0)
    return encoded, shown


def _try(lm: FrozenLM, value: Neighbours, form: Format, row: Row, near: Sequence[int], cut: int) -> Encoded | None:
    examples = [value.examples[i] for i in reversed(near)]
    put = replace(form, template=with_demos(form.template, examples, value.separator, data=not form.words))
    try:
        [found] = encode_rows(lm, put, [row])
    except (ConfigError, DataError):  # longer than the context
        return None
    return found if found.cut <= cut else None


def _likely(lm: FrozenLM, near: Sequence[int], value: Neighbours, alone: Encoded) -> int:
    """Return an upper bound of the examples that fit, by their number of words: a word has one token or more."""
    room = lm.dims.context - len(alone.ids_S)
    for count, index in enumerate(near):
        room -= sum(len(text.split()) for text in value.examples[index].fields.values())
        if room < 0:
            return count
    return len(near)
