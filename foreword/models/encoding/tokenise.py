"""Turn text into pieces: one place for everything that the encoder asks of a tokenizer.

Control tokens are recognised in a template's own text only; text of the data is tokenised as plain text, whatever it
looks like. They are the special tokens, and marks that were added to the tokenizer, such as <think>: text in brackets.
Words and spaces that were added are text everywhere. `following` treats text after a slot as the tokenizer itself
treats text after a special token.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, final

from foreword.core.template import MARK
from foreword.errors import DataError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXTS = ("a", ".", "0", "\n")  # texts that some piece ends after, in any tokenizer: see `after`


@final
@dataclass(frozen=True)
class Control:
    """Describe a control token: its text and id, and how the tokenizer looks for it.

    `lstrip` and `rstrip` take the whitespace before and after it; `single_word` allows no letter beside it; `any_case`
    is true if the tokenizer's normaliser makes upper and lower case of its text the same.
    """

    text: str
    index: int
    special: bool
    lstrip: bool
    rstrip: bool
    single_word: bool
    any_case: bool

    @property
    def pattern(self) -> str:
        """Return a regular expression that finds the token in a template's own text."""
        text = f"(?i:{re.escape(self.text)})" if self.any_case else re.escape(self.text)
        return rf"(?<!\w){text}(?!\w)" if self.single_word else text


@final
@dataclass(frozen=True, eq=False)
class Pieces:
    """Hold a fast tokenizer, and what was found out about it.

    `before` and `after_row` are the special pieces that it puts around a text (no end of sequence for causal models).
    `restarts` is true if it tokenises text after a special token as it does the start of a text (some put a space in
    front of a text's first word only). `never` holds the ids of `control`, except the unknown token's, which no text of
    the data may give.
    """

    tokenizer: Any
    before: tuple[int, ...]
    after_row: tuple[int, ...]
    restarts: bool
    control: tuple[Control, ...]
    never: frozenset[int]

    @staticmethod
    def of(tokenizer: Any, kind: str) -> "Pieces":
        """Return a tokenizer with what is found out about it. Raises: ModelError for a tokenizer without offsets
        ("slow")."""
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path!r} is a slow one, which cannot tell where its pieces stand; "
                "load the model with its fast tokenizer (tokenizer.json)."
            )
        control = _control(tokenizer)
        [plain] = _ids(tokenizer, ["a"], split=True)
        whole = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        restarts = True
        special = next((token.text for token in control if token.special), None)
        if special is not None:
            [alone] = _ids(tokenizer, ["ab"], split=True)
            [behind] = _ids(tokenizer, [special + "ab"], split=False)
            restarts = behind[1:] == alone
        end = () if kind == "causal" else tuple(whole[at + len(plain) :])
        never = frozenset(token.index for token in control if token.index != tokenizer.unk_token_id)
        return Pieces(tokenizer, tuple(whole[:at]), end, restarts, control, never)

    def start(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the pieces of texts that begin a row."""
        found = _ids(self.tokenizer, texts, split=True)
        return [
            ids if self.never.isdisjoint(ids) else [i for i, _, _ in self._broken(text)]
            for text, ids in zip(texts, found, strict=True)
        ]

    def following(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the pieces of texts that stand after a slot or a special token."""
        return self.start(texts) if self.restarts else self.after(CONTEXTS, texts)

    def after(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Return the pieces of texts that stand right after other text: tokenised together, then the context's pieces
        taken off.

        For each text, the first context whose own pieces stay as they were is used; a text that merges with all of them
        is tokenised alone.
        """
        results: list[list[int] | None] = [None] * len(texts)
        for context in contexts:
            pending = [i for i, ids in enumerate(results) if ids is None]
            if not pending:
                break
            [own] = self.start([context])
            for i, ids in zip(pending, self.start([context + texts[i] for i in pending]), strict=True):
                if ids[: len(own)] == own:
                    results[i] = ids[len(own) :]
        return [self.start([text])[0] if ids is None else ids for text, ids in zip(texts, results, strict=True)]

    def offsets(self, text: str, first: bool) -> list[tuple[int, int]]:
        """Return the start and end in the text of each of its pieces, the same pieces as from `start` (if `first`) or
        `following`."""
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
        """Return a template's own text, cut at the control tokens that are written in it, which become ids."""
        if not self.control:
            return [text] if text else []
        parts: list[str | int] = []
        at = 0
        for found in self._written.finditer(text):
            written = found.group()
            parts += [text[at : found.start()], self._id_of[written if written in self._id_of else written.lower()]]
            at = found.end()
        return [part for part in [*parts, text[at:]] if part != ""]

    def strips(self, index: int) -> tuple[bool, bool]:
        """Return whether the tokenizer takes the whitespace before and after this control token as part of it."""
        return next(((token.lstrip, token.rstrip) for token in self.control if token.index == index), (False, False))

    @cached_property
    def _written(self) -> re.Pattern[str]:
        longest_first = sorted(self.control, key=lambda token: len(token.text), reverse=True)
        return re.compile("|".join(token.pattern for token in longest_first))

    @cached_property
    def _id_of(self) -> dict[str, int]:
        lower = {token.text.lower(): token.index for token in self.control if token.any_case}
        return lower | {token.text: token.index for token in self.control}

    def _broken(self, text: str, begins: bool = True) -> list[tuple[int, int, int]]:
        """Return pieces as (id, start, end), none of them a control token. The text begins a row if `begins`, or else
        follows other text.

        If the tokenizer's model itself knows a control token's text as a piece (Unigram models do), the text is split
        behind the first character of that piece, and the parts are tokenised one after the other.

        Raises: DataError for a character that the tokenizer knows only as a control token.
        """
        result = self._spans(text) if begins else self._later(text)
        cuts = [a + 1 + len(text[a:b]) - len(text[a:b].lstrip()) for i, a, b in result if i in self.never]
        if not cuts:
            return result
        if cuts[0] >= len(text):
            unknown = self.tokenizer.unk_token_id
            if unknown is None:
                raise DataError(
                    f"The text has {text[-1]!r}, which the tokenizer of {self.tokenizer.name_or_path!r} knows as a "
                    "control token alone; take it out."
                )
            return [(unknown if i in self.never else i, a, b) for i, a, b in result]
        whole: list[tuple[int, int, int]] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part = self._broken(text[start:end], begins and start == 0) if start < end else []
            whole += [(i, start + a, start + b) for i, a, b in part]
        return whole

    def _later(self, text: str) -> list[tuple[int, int, int]]:
        """Return the pieces of a text that stands after one of `CONTEXTS`, if the tokenizer leaves one of them apart,
        else alone."""
        for context in CONTEXTS:
            own, both = self._spans(context), self._spans(context + text)
            if both[: len(own)] == own:
                return [(i, a - len(context), b - len(context)) for i, a, b in both[len(own) :]]
        return self._spans(text)

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return pieces as (id, start, end), as the tokenizer gives them without its control tokens."""
        if not text:
            return []
        encoding = self.tokenizer(
            [text], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = encoding["input_ids"][0], encoding["offset_mapping"][0]
        added = any(not token.special for token in self.control)
        if added and not self.never.isdisjoint(ids):
            plain = _without_control(self.tokenizer, self.never, len(self.tokenizer)).encode(
                text, add_special_tokens=False
            )
            ids, offsets = plain.ids, plain.offsets
        return [(i, *span) for i, span in zip(ids, offsets, strict=True)]


def _control(tokenizer: Any) -> tuple[Control, ...]:
    """Return the tokenizer's control tokens, in the order of their ids."""
    normaliser = tokenizer.backend_tokenizer.normalizer

    def any_case(token: Any) -> bool:
        text = token.content
        if not token.normalized or normaliser is None or text.lower() == text.upper():
            return False
        return normaliser.normalize_str(text.lower()) == normaliser.normalize_str(text.upper())

    return tuple(
        Control(t.content, index, t.special, t.lstrip, t.rstrip, t.single_word, any_case(t))
        for index, t in sorted(tokenizer.added_tokens_decoder.items())
        if t.special or MARK.search(t.content)
    )


@lru_cache(maxsize=4)  # reading a large tokenizer takes a second
def _without_control(tokenizer: Any, never: frozenset[int], size: int) -> "Tokenizer":
    """Return a copy of the tokenizer's backend, to which every control token is plain text."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in never
    state["truncation"] = state["padding"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = True
    return backend


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
