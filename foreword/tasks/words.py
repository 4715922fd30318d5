"""Split texts of any script into characters and words, as metrics of texts compare them."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Scripts whose words are not parted by spaces, by the beginning of their letters' Unicode names.
UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO", "JAVANESE", "YI ")
HAN, KANA = ("CJK ",), ("HIRAGANA", "KATAKANA")

# Sentence-final marks (Unicode's Sentence_Terminal) of the scripts in wide use, after `fold`.
FINAL = (
    ".!?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u0964\u0965\u0f0d\u0f0e\u104a\u104b\u1362\u1367\u1368\u166e"
)
FINAL += "\u1735\u1736\u17d4\u17d5\u1803\u1809\u203d\u3002\uaaf0\uaaf1\uabeb"
OPENING = "\"'([{<\u00ab\u2039\u00bf\u00a1\u3008\u300a\u300c\u300e\u3010*_`~"
CLOSING = FINAL + "\"',;:)]}>\u00bb\u203a\u3001\u3009\u300b\u300d\u300f\u3011\u060c\u061b*_`~"

# Compatibility forms that are the same letters. Superscripts, fractions, circled and mathematical letters say more.
_SAME = ("<wide>", "<narrow>", "<noBreak>", "<compat>", "<small>", "<initial>", "<medial>", "<final>", "<isolated>")
# One mark in other fonts: apostrophes, quotation marks, hyphens and the minus sign.
_MARKS = dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'") | dict.fromkeys(map(ord, "\u201c\u201d\u201e"), '"')
_MARKS |= dict.fromkeys(map(ord, "\u2010\u2011\u2212"), "-")
# Nothing to see: soft hyphens, zero-width spaces and marks of direction. Joiners stay, which change what is written.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067"))
_INVISIBLE |= dict.fromkeys(map(ord, "\u2068\u2069"))


def fold(text: str) -> str:
    """Return the text with each letter in one form, its case kept: composed (NFC), of plain width, without ligatures.

    NFKC would make x² of x2 and ½ of 1/2, so only compatibility forms that are the same letters are replaced.
    """
    if text.isascii():
        return text
    text = text.translate(_INVISIBLE | _MARKS)
    return unicodedata.normalize("NFC", "".join(map(_same, text)))


def plain(text: str) -> str:
    """Return the text as texts are compared: folded, in lower case, with single spaces and none around it."""
    return " ".join(fold(fold(text).casefold()).split())


def without_final(text: str) -> str:
    """Return the text without one sentence-final mark at its end; an ellipsis is one mark, and 5! is a factorial."""
    if text.endswith("..."):
        return text[:-3].rstrip()
    if text[-1:] in FINAL and text and not (text[-1] == "!" and text[-2:-1].isdigit()):
        return text[:-1].rstrip()
    return text


def tokens(text: str) -> list[str]:
    """Return the words of a text: what spaces separate, without the quotes, brackets and sentence marks around it.

    Signs within a word stay (C++, 1/2, 50%, -5, U.S.), but a hyphen between letters separates words. Letters of scripts
    that are written without spaces are a token each.
    """
    results: list[str] = []
    for chunk in plain(text).split():
        for run in _runs(chunk):
            word = without_edges(run)
            results += [part for part in re.split(r"(?<=[^\W\d])-(?=[^\W\d])", word) if part]
    return results


def word_tokens(text: str) -> list[str]:
    """Return the runs of letters, digits and marks of any script; letters of scripts without spaces one by one."""
    results = []
    for run in re.findall(r"\S+", plain(text)):
        for part in _runs(run):
            results += "".join(c if is_wordlike(c) and c != "_" else " " for c in part).split()
    return results


def without_edges(word: str) -> str:
    """Return a word without the marks before and after it; an abbreviation loses its full stop too."""
    return word.lstrip(OPENING).rstrip(CLOSING)


def is_wordlike(character: str) -> bool:
    """Return whether a character is part of a word: a letter, a digit, or a mark that is written on one."""
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


@lru_cache(maxsize=1 << 14)
def is_unspaced(character: str) -> bool:
    """Return whether a character is of a script whose words are not separated by spaces."""
    return not character.isascii() and unicodedata.name(character, "").startswith(UNSPACED) and is_wordlike(character)


def share(texts: Iterable[str], names: tuple[str, ...]) -> float:
    """Return the share of the letters of all texts whose Unicode names begin with one of `names`; 0 without letters."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return sum(unicodedata.name(c, "").startswith(names) for c in letters) / len(letters) if letters else 0.0


def _runs(chunk: str) -> list[str]:
    """Split a text without spaces at letters of unspaced scripts: each of these, with its marks, is a run."""
    runs: list[str] = []
    begins = True
    for character in chunk:
        mark = unicodedata.category(character)[0] == "M"
        single = is_unspaced(character) and not mark
        if runs and not begins and not single:
            runs[-1] += character
        elif mark and runs:
            runs[-1] += character
            continue
        else:
            runs.append(character)
        begins = single
    return runs


@lru_cache(maxsize=1 << 14)
def _same(character: str) -> str:
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    if tag not in _SAME:
        return character
    return "".join(_same(chr(int(code, 16))) for code in codes.split())
