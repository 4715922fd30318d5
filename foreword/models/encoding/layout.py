"""Turn a template into the items of its rows for a kind of model, and refuse templates that do not suit it."""

from dataclasses import replace
from typing import final

from foreword.core.format import Format
from foreword.core.template import AnswerPlace, Decoder, Soft, Template
from foreword.errors import ConfigError, ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import Chat
from foreword.models.encoding.row_items import Gap, Item, RowItems, layout_row, with_answer, with_holes
from foreword.models.encoding.tokenise import Pieces
from foreword.models.encoding.verbalizer import LabelPlace

__all__ = ["Laid", "lay_out"]


@final
class Laid:
    """Hold a row, the place of its label words, and its chat, if it is one."""

    def __init__(self, row: RowItems, place: LabelPlace, chat: Chat | None):
        self.row, self.place, self.chat = row, place, chat


def lay_out(lm: FrozenLM, format: Format, pieces: Pieces) -> Laid:
    """Return the row of a format for this model. Raises: ConfigError for a template that does not suit the model;
    ModelError for its tokenizer."""
    template = format.template
    _check_answer(lm, format)
    filler = lm.tokenizer.pad_token_id or 0
    if lm.kind == "seq2seq":
        return _two_parts(lm, template, pieces, filler, format.soft_first)
    chat = Chat.of(lm.tokenizer, template, format.chat_options, lm.name) if template.chat else None
    mask_id = lm.tokenizer.mask_token_id if lm.kind == "masked" else None
    if lm.kind == "masked" and mask_id is None:
        raise ModelError(f"The tokenizer of {lm.name!r} has no mask token; load the model as causal.")
    parts = chat.parts if chat else with_answer(with_holes(template.parts))
    row = layout_row(parts, pieces, mask_id, filler, chat is not None, format.soft_first)
    return Laid(row, LabelPlace(chat.tail, chat.lead) if chat else LabelPlace.of(parts), chat)


def _two_parts(lm: FrozenLM, template: Template, pieces: Pieces, filler: int, soft_first: bool) -> Laid:
    """Return the encoder's items, then the decoder's: the tokens that its texts begin with, and the template's own
    after {decoder}.

    Slots are numbered across both parts. Spaces before the answer are left out if the decoder's part has nothing but
    slots before it.
    """
    first, second = template.halves
    read = layout_row(with_holes(first), pieces, None, filler, False, soft_first)
    parts = with_answer(with_holes(second))
    begun = replace(pieces, before=lm.opening, after_row=())
    written = layout_row(parts, begun, None, filler, False, False)
    ahead = len(read.init_P)
    later: list[Item] = [Gap(i.start + ahead, i.ids) if isinstance(i, Gap) else i for i in written.items]
    row = RowItems((*read.items, *later), (*read.init_P, *written.init_P), len(read.items))
    # After nothing but slots a text begins as it does without them.
    return Laid(
        row,
        LabelPlace(None, "") if all(isinstance(p, Soft | AnswerPlace) for p in parts) else LabelPlace.of(parts),
        None,
    )


def _check_answer(lm: FrozenLM, format: Format) -> None:
    template = format.template
    if Decoder() in template.parts and lm.kind != "seq2seq":
        raise ConfigError(
            f"The template {template.source!r} has {{decoder}}, and {lm.name!r} is a {lm.kind} model without a decoder "
            "of its own: leave it out, or use an encoder-decoder model."
        )
    if lm.kind != "causal" and template.chat:
        told = "a masked model" if lm.kind == "masked" else "an encoder-decoder model"
        place = "with {mask}" if lm.kind == "masked" else "of one string"
        raise ConfigError(f"{lm.name!r} is {told}, and messages need a causal one; give a template {place}.")
    if lm.kind == "masked":
        if template.answer is None:
            raise ConfigError(f"The template {template.source!r} has no {{mask}}; {lm.name!r} reads its answer there.")
    elif template.answer and not isinstance(template.parts[-1], AnswerPlace):
        told = "is causal and reads its answer at the end" if lm.kind == "causal" else "writes its answer at the end"
        raise ConfigError(
            f"The template {template.source!r} goes on after {{{template.answer.name}}}; {lm.name!r} {told}: move it "
            "there."
        )
    if format.chat_options.set and not template.chat:
        named = ", ".join(format.chat_options.variables)
        raise ConfigError(
            f"The chat options {named} were given for a template of one string, which no chat template renders; leave "
            "them out, or give the template as messages."
        )
    if format.soft_first and template.chat:
        raise ConfigError("soft_first cannot be used with messages: slots stand inside them; leave soft_first out.")
    if format.soft_first and not (template.parts and isinstance(template.parts[0], Soft)):
        raise ConfigError(f"soft_first needs a template that begins with a slot; this one is {template.source!r}.")
