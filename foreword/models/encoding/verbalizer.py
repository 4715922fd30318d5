"""Turn label words into plans: write each word in the answer's place, and refuse words that cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from foreword.core.template import AnswerPlace
from foreword.core.template import Literal as Text
from foreword.errors import ConfigError
from foreword.models.base import Kind
from foreword.models.encoding.label_layout import LabelPlan
from foreword.models.encoding.row_items import Part
from foreword.models.encoding.tokenise import CONTEXTS, Pieces

LabelSet = tuple[Sequence[str], Sequence[Sequence[str]]]  # label names, and the words of each


@final
@dataclass(frozen=True, eq=False)
class LabelPlace:
    """Describe where label words stand: the template's own text before them (None if they begin the row), and the
    spaces between. After a field or a slot a word has one space."""

    tail: str | None
    spaces: str

    @staticmethod
    def of(parts: Sequence[Part]) -> "LabelPlace":
        """Return the place of the answer among a template's parts."""
        at = next(i for i, p in enumerate(parts) if isinstance(p, AnswerPlace))
        if at == 0:
            return LabelPlace(None, "")
        last = parts[at - 1]
        if not isinstance(last, Text):
            return LabelPlace("", " ")
        text = last.text.rstrip(" ")
        return LabelPlace(text, last.text[len(text) :])

    def ids(self, pieces: Pieces, words: Sequence[str]) -> list[list[int]]:
        """Return the pieces of words as they are in this place."""
        spaced = [self.spaces + word for word in words]
        if self.tail is None:
            return pieces.start(spaced)
        ends = pieces.split_special(self.tail)
        if ends and isinstance(ends[-1], int):
            return pieces.following(spaced)
        return pieces.after([str(ends[-1]), *CONTEXTS] if ends else CONTEXTS, spaced)


@final
@dataclass(frozen=True, eq=False)
class Planner:
    """Make plans of label words for one tokenizer and place; `model` is its name in messages."""

    pieces: Pieces
    place: LabelPlace
    kind: Kind
    mean: bool
    model: str

    def plans(
        self,
        sets: Sequence[LabelSet],
        what: Literal["label", "option"],
        shift: tuple[float, ...] = (),
        temperature: float = 1.0,
    ) -> list[LabelPlan]:
        """Return a plan for each set of labels; their words are tokenised in one call.

        Raises: ConfigError for words that the tokenizer has no pieces for, or cannot tell apart.
        """
        ids = self._ids([w for _, words in sets for label in words for w in label], f"{what} word")
        plans = []
        for names, words in sets:
            self._check(names, words, ids, what)
            pieces = tuple(tuple(ids[w.strip()] for w in label) for label in words)
            plans.append(LabelPlan(self.kind, pieces, self.mean, shift=shift, temperature=temperature))
        return plans

    def texts(self, texts: Sequence[str]) -> list[LabelPlan]:
        """Return a plan for each text, whose one label is that text: its score is the text's whole log-likelihood.

        Raises: ConfigError for a text that the tokenizer has no pieces for.
        """
        ids = self._ids(texts, "text")
        return [LabelPlan(self.kind, ((ids[text.strip()],),), mean=False, normalised=True) for text in texts]

    def _ids(self, words: Sequence[str], what: str) -> dict[str, tuple[int, ...]]:
        """Return the pieces of each distinct word. Raises: ConfigError for a word that the tokenizer has no pieces
        for."""
        distinct = list(dict.fromkeys(word.strip() for word in words))
        ids = dict(zip(distinct, map(tuple, self.place.ids(self.pieces, distinct)), strict=True))
        unknown = self.pieces.tokenizer.unk_token_id
        for word, found in ids.items():
            if not word or not found or unknown in found:
                raise ConfigError(
                    f"The {what} {word!r} has no pieces in the tokenizer of {self.model!r}; choose another."
                )
        return ids

    def _check(
        self, names: Sequence[str], words: Sequence[Sequence[str]], ids: dict[str, tuple[int, ...]], what: str
    ) -> None:
        if len(names) != len(words):
            raise ConfigError(f"There are {len(names)} labels and label words for {len(words)}; give each its own.")
        owner: dict[tuple[int, ...], str] = {}
        for name, label in zip(names, words, strict=True):
            if not label:
                raise ConfigError(f"The {what} {name!r} has no word; give it one or more label words.")
            for word in label:
                result = ids[word.strip()]
                if result in owner:
                    raise ConfigError(
                        f"The {what} words {word!r} of {name!r} and {owner[result]} are the same pieces to the "
                        f"tokenizer of {self.model!r}; every word may stand once."
                    )
                owner[result] = f"{word!r} of {name!r}"
