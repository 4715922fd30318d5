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
    in front of a text's first word only). `special` maps the text of special tokens to (id, strips left, strips right).
    """

    tokenizer: Any
    before: tuple[int, ...]
    after_row: tuple[int, ...]
    restarts: bool
    special: dict[str, tuple[int, bool, bool]]

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
        return Pieces(tokenizer, tuple(whole[:at]), end, restarts, special)

    def start(self, texts: Sequence[str]) -> list[list[int]]:
        """Pieces of texts that begin a row."""
        return _ids(self.tokenizer, texts, split=True)

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
            return self._offsets(text)
        [wanted] = self.following([text])
        for context in CONTEXTS:
            spans = self._offsets(context + text)[len(self.start([context])[0]) :]
            if len(spans) == len(wanted):
                return [(max(0, a - len(context)), max(0, b - len(context))) for a, b in spans]
        return self._offsets(text)

    def split_special(self, text: str) -> list[str | int]:
        """A template's own text, cut at the special tokens that are written in it, which become ids."""
        if not self.special:
            return [text] if text else []
        longest_first = sorted(self.special, key=len, reverse=True)
        parts: list[str | int] = []
        for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
            if part in self.special:
                index, strips_left, _ = self.special[part]
                if strips_left and parts and isinstance(parts[-1], str):
                    parts[-1] = parts[-1].rstrip()
                parts.append(index)
            elif part:
                strips = parts and isinstance(parts[-1], int) and self._strips_right(parts[-1])
                parts.append(part.lstrip() if strips else part)
        return [part for part in parts if part != ""]

    def strips_left(self, token: str) -> bool:
        """Whether the tokenizer takes the whitespace before this special token as part of it."""
        return token in self.special and self.special[token][1]

    def _strips_right(self, index: int) -> bool:
        return any(right for number, _, right in self.special.values() if number == index)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        if not text:
            return []
        found = self.tokenizer(
            [text], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [(int(a), int(b)) for a, b in found["offset_mapping"][0]]


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
