"""Text to pieces: what encode.py asks of a tokenizer, in one place.

Special tokens are recognised in a template's own text only; text of the data is tokenised as plain text, whatever it
looks like. `following` treats text after a slot as the tokenizer itself treats text after a special token.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from foreword.errors import ModelError

CONTEXTS = ("a", ".", "0", "\n")  # texts that some piece ends after, in any tokenizer: see `after`


@final
@dataclass(frozen=True, eq=False)
class Pieces:
    """A fast tokenizer, and what was found out about it.

    `before` and `after_row` are the special pieces it puts around a text (no end of sequence for causal models).
    `restarts` says whether it tokenises text after a special token as it does the start of a text (some put a space
    in front of a text's first word only). `special` maps the text of special tokens to (id, strips left, strips right);
    `never` are their ids, which no text of the data may give.
    """

    tokenizer: Any
    before: tuple[int, ...]
    after_row: tuple[int, ...]
    restarts: bool
    special: dict[str, tuple[int, bool, bool]]
    never: frozenset[int]

    @staticmethod
    def of(tokenizer: Any, kind: str) -> "Pieces":
        """Raises: ModelError for a tokenizer without offsets ("slow")."""
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path!r} is a slow one, which cannot tell where its pieces stand; "
                "load the model with its fast tokenizer (tokenizer.json)."
            )
        special = {
            token.content: (index, token.lstrip, token.rstrip)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        [plain] = _ids(tokenizer, ["a"], split=True)
        whole = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        restarts = True
        if special:
            token = next(iter(special))
            [alone] = _ids(tokenizer, ["ab"], split=True)
            [behind] = _ids(tokenizer, [token + "ab"], split=False)
            restarts = behind[1:] == alone
        end = () if kind == "causal" else tuple(whole[at + len(plain) :])
        never = frozenset(index for index, _, _ in special.values() if index != tokenizer.unk_token_id)
        return Pieces(tokenizer, tuple(whole[:at]), end, restarts, special, never)

    def start(self, texts: Sequence[str]) -> list[list[int]]:
        """Pieces of texts that begin a row."""
        found = _ids(self.tokenizer, texts, split=True)
        return [
            ids if self.never.isdisjoint(ids) else [i for i, _, _ in self._broken(text)]
            for text, ids in zip(texts, found, strict=True)
        ]

    def following(self, texts: Sequence[str]) -> list[list[int]]:
        """Pieces of texts that stand after a slot or a special token."""
        return self.start(texts) if self.restarts else self.after(CONTEXTS, texts)

    def after(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Pieces of texts that stand right after other text: tokenised together, then the context's pieces taken off.

        The first context whose own pieces stay as they were is used for a text; a text that merges with all of them is
        tokenised alone.
        """
        found: list[list[int] | None] = [None] * len(texts)
        for context in contexts:
            pending = [i for i, ids in enumerate(found) if ids is None]
            if not pending:
                break
            [own] = self.start([context])
            for i, ids in zip(pending, self.start([context + texts[i] for i in pending]), strict=True):
                if ids[: len(own)] == own:
                    found[i] = ids[len(own) :]
        return [self.start([text])[0] if ids is None else ids for text, ids in zip(texts, found, strict=True)]

    def offsets(self, text: str, first: bool) -> list[tuple[int, int]]:
        """Where in the text each of its pieces stands; the same pieces as `start` (first) or `following` give."""
        if first or self.restarts:
            return [(a, b) for _, a, b in self._broken(text)]
        [wanted] = self.following([text])
        for context in ("", *CONTEXTS):
            own = len(self.start([context])[0])
            found = self._broken(context + text)[own:]
            if [i for i, _, _ in found] == wanted:
                return [(max(0, a - len(context)), max(0, b - len(context))) for _, a, b in found]
        raise ModelError(f"The tokenizer of {self.tokenizer.name_or_path!r} cannot tell where its pieces stand.")

    def split_special(self, text: str) -> list[str | int]:
        """A template's own text, cut at the special tokens that are written in it, which become ids."""
        if not self.special:
            return [text] if text else []
        longest_first = sorted(self.special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        return [self.special[part][0] if part in self.special else part for part in parts if part]

    def strips(self, index: int) -> tuple[bool, bool]:
        """Whether the tokenizer takes the whitespace before and after this special token as part of it."""
        return next(((left, right) for i, left, right in self.special.values() if i == index), (False, False))

    def _broken(self, text: str) -> list[tuple[int, int, int]]:
        """Pieces as (id, start, end), the text broken up wherever the tokenizer's model knows a special token's text
        as a piece (Unigram models do); the parts are tokenised one after the other."""
        found = self._spans(text)
        cuts = [a + 1 + len(text[a:b]) - len(text[a:b].lstrip()) for i, a, b in found if i in self.never]
        if not cuts:
            return found
        whole = self._spans(text[: cuts[0]])
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            context = CONTEXTS[0]
            skip = len(self._spans(context))
            later = self._spans(context + text[start:end])[skip:]
            whole += [(i, start + a - len(context), start + b - len(context)) for i, a, b in later]
        return whole

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        if not text:
            return []
        found = self.tokenizer(
            [text], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [(i, *span) for i, span in zip(found["input_ids"][0], found["offset_mapping"][0], strict=True)]


def _ids(tokenizer: Any, texts: Sequence[str], split: bool) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=split,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
