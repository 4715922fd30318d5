"""Find which of several choices a text names: labels, options, or their letters."""

import re
from collections.abc import Sequence
from typing import NamedTuple, final

from foreword.tasks.words import CLOSING, OPENING, fold, is_unspaced, is_wordlike

# Short labels that are words of a language too: articles, pronouns, prepositions, conjunctions.
_WORDS = frozenset("a i o u y e à é è ó s k v w z в и а к о с у я".split()) | {"no"}
# What goes on after a choice that is the answer; an article or a pronoun is not followed so ("I" by "is" neither).
_REASONS = frozenset("is because since as are fits seems applies would must or and nor".split())
_NOT_OF_I = ("would", "must", "and", "or")
_BECAUSE = re.compile(r"[\s,:;\u2013\u2014-]*(?:because|since|as|is (?:correct|right|the))(?!\w)")
_ANNOUNCED = re.compile(r"(?:option|choice|letter|选项|選項)\s*[\"'*`(\[]*\s*$")
_RULED_OUT = re.compile(
    r"(?:(?<!\w)(?:not|never|nor|neither|rather than|instead of|unlike|isn't|wasn't|aren't)\s+(?:an?\s+|the\s+)?"
    r"(?:option\s+|choice\s+)?|不是|不|并非)[\"'*`(\[]*\s*$"
)
_WRONG = re.compile(r"[\"'*`)\]]*\s*(?:is|are|was)(?:n't| not| wrong| incorrect| false| out| ruled out)(?!\w)")
_JOINED = re.compile(
    r"[\"'*`)\].]*\s*,?\s*(?:or|and|nor|oder|und|ou|et|или|и|或|和|/|&)\s*(?:option\s+|choice\s+)?[\"'*`(\[]*\s*"
)
_LINE_END = re.compile(rf"[{re.escape(CLOSING)} \t]*(?:\n|$)")


@final
class Mention(NamedTuple):
    """Hold a choice that a text names, at `start` to `end` of the folded text; `sure` if it cannot be another word."""

    name: str
    start: int
    end: int
    sure: bool


@final
class Choices:
    """Find the mentions of choices in a text, and decide which mention is the answer.

    A choice is named by its words in any case, as whole words of their script. A label of one letter that runs
    into other signs (C++, A.I., I'm), and a label that is a word of a language (A, I, a, no), names its choice only
    where it is marked ((A), A), **A**, option A), stands alone, or goes on with a reason ("A because"); and where any
    mention is of that sure kind, letters in running text ("B vitamins") are none. What the text rules out ("not B",
    "B is wrong") is no mention.

    After words that announce an answer its first mention counts. Elsewhere an answer that the text begins with, alone
    on its line or followed by its reason, is the answer, since what comes after it explains it or goes on to something
    else; and otherwise the last mention is, since reasoning ends with what it concludes. Two choices joined in a phrase
    ("A or B", "A and B", "A/B", and of letters "A, B") are no answer: the text did not decide.
    """

    def __init__(self, text: str, choices: Sequence[Sequence[str]]) -> None:
        self.text, self._original = _folded(text)
        found = [m for m in self._all(choices) if not self._is_ruled_out(m)]
        sure = [m for m in found if m.sure]
        self.mentions = sure or found

    def first(self) -> Mention | None:
        """Return the first choice that is named; None if there is none, or if another choice is joined to it."""
        return self._alone(0) if self.mentions else None

    def concluded(self) -> Mention | None:
        """Return the choice that the text begins with as its answer, else the last one."""
        return self.opening() or (self._alone(len(self.mentions) - 1) if self.mentions else None)

    def opening(self) -> Mention | None:
        """Return the choice that the text states before anything else; None if it does not."""
        if not self.mentions:
            return None
        first = self.mentions[0]
        before = _ANNOUNCED.sub("", self.text[: first.start])
        if before.strip(OPENING + " \t\n"):
            return None
        after = self.text[first.end :].lstrip("\"'*`)]}.")
        stated = _LINE_END.match(self.text, first.end) or _BECAUSE.match(after)
        return self._alone(0) if stated else None

    def _alone(self, index: int) -> Mention | None:
        """Return a mention; None if another choice is joined to it in one phrase."""
        mention = self.mentions[index]
        for other in self.mentions[max(0, index - 1) : index + 2]:
            left, right = sorted((mention, other), key=lambda m: m.start)
            between = self.text[left.end : right.start]
            listed = between.strip(" ()*") == "," and max(len(self.text[m.start : m.end]) for m in (left, right)) == 1
            if other.name != mention.name and (listed or _JOINED.fullmatch(between)):
                return None
        return mention

    def _all(self, choices: Sequence[Sequence[str]]) -> list[Mention]:
        """Return every mention in order; of words that begin at one place, or contain each other, the longest."""
        names = {_folded(word)[0]: (words[0], fold(word)) for words in choices for word in words}
        names.pop("", None)
        if not names:
            return []
        # Longest first: in an alternation the first that matches is taken.
        words = sorted(names, key=len, reverse=True)
        result, at = [], 0
        pattern = re.compile("|".join(map(re.escape, words)))
        while match := pattern.search(self.text, at):
            at = match.start() + 1
            # A longer word may fail at its edges where a shorter one does not.
            for word in (w for w in words if self.text.startswith(w, match.start())):
                end = match.start() + len(word)
                name, written = names[word]
                if self._is_whole(match.start(), end):
                    at = end
                    if (sure := self._is_sure(match.start(), end, written)) is not None:
                        result.append(Mention(name, match.start(), end, sure))
                    break
        return result

    def _is_whole(self, start: int, end: int) -> bool:
        """Return whether no word or number continues beyond either edge."""
        text = self.text
        before, after = text[start - 1 : start], text[end : end + 1]
        if before and is_wordlike(text[start]) and _goes_on(before, text[start]):
            return False
        if after and is_wordlike(text[end - 1]) and _goes_on(after, text[end - 1]):
            return False
        if text[start].isdigit() and re.search(r"(?:(?<!\w)[-\u2013]|\d[.,/])$", text[max(0, start - 2) : start]):
            return False
        if text[end - 1].isdigit() and re.match(r"[.,/]\d", text[end : end + 2]):
            return False
        if end - start > 1:
            return True
        joined = re.match(r"[+#]|[.'\u2019-]\w", text[end : end + 2]) or re.search(
            r"\w[.'\u2019-]$", text[max(0, start - 2) : start]
        )
        return not joined or not text[start].isalpha()

    def _is_sure(self, start: int, end: int, written: str) -> bool | None:
        """Return True if the label cannot be another word here, False if it may be one, and None if it is one."""
        text = self.text
        short = end - start == 1 and text[start].isalpha() and not is_unspaced(text[start])
        word = text[start:end] in _WORDS
        if not short and not (word and start):
            return True
        before, after = text[max(0, start - 40) : start].rstrip(" \t"), text[end : end + 40].lstrip(" \t")
        next_word = re.match(rf"[{re.escape(OPENING)}\s]*([^\W_]+)", text[end : end + 40])
        runs_on = text[end : end + 1].isspace() and not after.startswith("\n") and next_word
        same_case = self._original[start:end] == written
        if before[-1:] in tuple("([{*`\"'_") and before and after[:1] in tuple(")]}*`\"'_.:"):
            return True
        if _ANNOUNCED.search(before + " ") and (same_case or not runs_on):
            return True
        if not runs_on or next_word is None:
            return True
        reasons = next_word.group(1) in _REASONS and (same_case or not word)
        if text[start:end] == "i" and next_word.group(1) in _NOT_OF_I:
            reasons = False
        return True if reasons else None if word or not same_case else False

    def _is_ruled_out(self, mention: Mention) -> bool:
        before = self.text[max(0, mention.start - 40) : mention.start]
        return bool(_RULED_OUT.search(before) or _WRONG.match(self.text, mention.end))


def _goes_on(character: str, edge: str) -> bool:
    """Return whether a word continues with the character beside its edge; never in scripts without spaces."""
    return is_wordlike(character) and not is_unspaced(character) and not is_unspaced(edge)


def _folded(text: str) -> tuple[str, str]:
    """Return a text folded and without case, and the same text with its case; both have the same length."""
    kept = fold(text)
    lower = [c.casefold() for c in kept]
    return "".join(lower), "".join(c * len(low) for c, low in zip(kept, lower, strict=True))
