"""Find numbers as people write them in a text, and their values."""

import math
import re
import unicodedata

from foreword.tasks.words import fold

# A letter or digit before a number makes it part of a name, unless it is of a script without spaces.
_BEFORE = r"(?<![^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff])(?<![.])"
_SIGN = r"(?:(?<![\w.,)\]%])[-+\u2013])?"  # not that of 3-5, which is a range or a difference
_CURRENCY = r"(?:[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u20aa]\s?)?"
_WHOLE = (
    r"\d{1,3}(?:,\d{3})+(?!,?\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!,?\d)"  # 1,234 and 1,00,000
    r"|\d{1,3}(?:['\u00a0\u2009\u202f]\d{3})+(?!\d)"  # 1'234 and 1 234 with spaces that do not break
    r"|(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?!\d)(?! \d)"  # 1 234
)
_EUROPEAN = (
    r"\d{1,3}(?:[. \u00a0\u2009\u202f']\d{3})+,\d{1,2}(?![\d,])"  # 1.234,50
    r"|(?<![\d,(\[{])\d+,\d{1,2}(?![\d,])(?!\d*[)\]}])"  # 3,5 but not (3,5)
)
_PLAIN = r"\d+(?:\.\d+|(?!\.\d))(?!,\d{3}(?!\d))|\.\d+"  # whole, so that 1.5k is not 1
_POWER = r"(?:[eE][-+\u2013]?\d+(?!\w)|\s?[\u00d7x*\u00b7]\s?10\s?\^\s?[({]?[-\u2013]?\d+[)}]?)?"
_OVER = r"(?<![/\d])(?:(?P<mixed>\d+) )?(?P<over>\d+)\s?[/\u2044\u2215]\s?(?P<under>\d+)(?![\d/.,]\d|\d|/)"
# What a number may run into: a unit (15kg, 20\u00b0C, 5h, 15\u516c\u65a4). 3rd, 2x, 4b and 5k are something else.
_UNIT = r"(?!(?:st|nd|rd|th)(?!\w))(?:[mgshldtLVWAJNCFKw\u00b5](?!\w)|[^\W\d_]{2,}(?![\w])|[^\W\d_A-Za-z]+(?!\d))"
_DECADE = r"(?:1\d|20)\d0s(?!\w)"
_NUMBER = re.compile(
    rf"{_BEFORE}(?!{_DECADE})(?P<sign>{_SIGN}){_CURRENCY}"
    rf"(?:{_OVER}|(?P<european>{_EUROPEAN})|(?P<whole>(?:{_WHOLE})(?:\.\d+)?|{_PLAIN})(?P<power>{_POWER}))"
    rf"(?=\W|_?$|{_UNIT})"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(\d+)\s?\}\s?\{\s?(\d+)\s?\}")
_SUPERSCRIPT = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_TEN = re.compile("(10)([\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")


def numbers(text: str) -> list[float]:
    """Return every finite number in a text, in order.

    Thousands are separated by commas, spaces or apostrophes (1,234 or 1 234), a fraction is its value (3/2, 3 1/2, ½),
    and so is a power of ten (1e-3, 2 x 10^3). A minus may be Unicode's. A number may run into its unit (15kg, 50%, $5),
    but digits in a name are no number (v2, 3rd, 4b), and the parts of a date stay apart.
    """
    return [value for value, _, _ in spans(text)[1]]


def spans(text: str) -> tuple[str, list[tuple[float, int, int]]]:
    """Return the text in the form it is read in, and each finite number in it with its beginning and end."""
    text = _ready(text)
    results = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None and math.isfinite(value):
            results.append((value, match.start(), match.end()))
    return text, results


def plain_number(value: float) -> str:
    """Return a number as text, the same for 12, 12.0 and 1.2e1."""
    return str(int(value)) if value == int(value) and abs(value) < 1e16 else repr(value)


def _ready(text: str) -> str:
    """Return a text with fractions in one form, Latin separators and one form of minus."""
    if not text.isascii():
        text = _TEN.sub(lambda m: f"{m[1]}^{m[2].translate(_SUPERSCRIPT)}", text)
        text = "".join(
            f" {unicodedata.normalize('NFKC', c)}" if unicodedata.decomposition(c).startswith("<fraction>") else c
            for c in text
        )
        spaces = str.maketrans("\u00a0\u2009\u202f", "\ue000" * 3)  # which folding would make plain spaces of
        text = fold(text.translate(spaces)).replace("\ue000", "\u00a0").replace("\u066b", ".").replace("\u066c", ",")
    return _FRACTION.sub(r" \1/\2", text)


def _value(match: re.Match[str]) -> float | None:
    sign = -1.0 if match["sign"] in ("-", "\u2013") and match["sign"] else 1.0
    if match["over"]:
        under = float(match["under"])
        return sign * (float(match["mixed"] or 0) + float(match["over"]) / under) if under else None
    if match["european"]:
        return sign * float(re.sub("[.' \u00a0\u2009\u202f]", "", match["european"]).replace(",", "."))
    digits = re.sub("[,' \u00a0\u2009\u202f]", "", match["whole"])
    power = match["power"].replace("\u2013", "-").strip()
    if not power:
        return sign * float(digits)
    if power[0] in "eE":
        return sign * float(digits + power)
    exponent = re.sub(r"[(){}\s]", "", power.split("^")[1])
    return sign * float(f"{digits}e{exponent}")
