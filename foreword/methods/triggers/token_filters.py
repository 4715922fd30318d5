"""Filter the tokens that a search may put into a prompt by their surfaces, whatever the tokenizer's design."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.shapes import Int, Tensor
from foreword.errors import ConfigError
from foreword.methods.triggers.detokenise import CONTEXT
from foreword.models.base import FrozenLM

UNUSED = ("[unused", "<unused", "<reserved", "<|reserved")


@final
@dataclass(frozen=True)
class TokenFilter:
    """Describe which tokens a search may use.

    `capitals` False drops tokens with a capital first letter (a cheap guess at names, which would give answers away),
    `non_ascii` False those with any character beyond ASCII. `words` are never used: label words, or the objects of
    facts. `scripts` are those of the training texts; tokens of others are dropped.
    """

    words: frozenset[str]
    scripts: frozenset[str]
    capitals: bool = True
    non_ascii: bool = True


def scripts_of(texts: Iterable[str]) -> frozenset[str]:
    """Return the scripts of the letters in these texts.

    A script is the first word of a letter's Unicode name (LATIN, CYRILLIC, CJK).
    """
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return frozenset(unicodedata.name(char, "?").split()[0] for char in seen if char.isalpha())


def surfaces_of(lm: FrozenLM) -> list[str]:
    """Return each token's text as it stands after another word, its leading space included."""
    tokenizer = lm.tokenizer
    context = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    before = tokenizer.decode(context, clean_up_tokenization_spaces=False)
    tokens = min(len(tokenizer), lm.dims.vocab)
    decoded = tokenizer.batch_decode([[*context, i] for i in range(tokens)], clean_up_tokenization_spaces=False)
    return [text[len(before) :] if text.startswith(before) else "" for text in decoded]


def allowed_ids(lm: FrozenLM, wanted: TokenFilter, pieces: Iterable[int], surfaces: list[str]) -> Int[Tensor, "A"]:
    """Return the tokens that may be used, in order, without `pieces`, those of label words.

    Raises: ConfigError if nothing is left.
    """
    tokenizer = lm.tokenizer
    banned = {*pieces, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = {word.strip().lower() for word in wanted.words}
    raw = tokenizer.convert_ids_to_tokens(list(range(len(surfaces))))
    results = [
        i
        for i, (surface, name) in enumerate(zip(surfaces, raw, strict=True))
        if i not in banned and not str(name).startswith(UNUSED) and _passes(surface.strip(" "), wanted, words)
    ]
    if not results:
        raise ConfigError(
            f"No token of {lm.name!r} is left for the search: label words, special tokens, other scripts than "
            f"{', '.join(sorted(wanted.scripts)) or 'none'}"
            f"{'' if wanted.capitals else ', capitals'}{'' if wanted.non_ascii else ', non-ASCII'} are left out. Allow "
            "more, with -o capitals=true or -o non_ascii=true."
        )
    return torch.tensor(results)


def _passes(text: str, wanted: TokenFilter, words: set[str]) -> bool:
    if not text or not text.isprintable() or "\ufffd" in text or text.lower() in words:
        return False
    if not wanted.capitals and text[0].isupper():
        return False
    if not wanted.non_ascii and not text.isascii():
        return False
    return scripts_of([text]) <= wanted.scripts
