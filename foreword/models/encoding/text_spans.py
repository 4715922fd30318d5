"""Find which columns of a row hold the text of one field, and which part of that text each column holds."""

from foreword.errors import ConfigError
from foreword.models.encoding.encoder import Encoded, Encoder, TextRow
from foreword.models.encoding.row_items import Fixed, Hole, Text


def text_spans(encoder: Encoder, row: TextRow, encoded: Encoded, name: str) -> list[tuple[int, str]]:
    """Return the columns of a field's text in order, each with its part of the text; the parts add up to the text.

    Special tokens that the tokenizer puts before the text, with nothing else there, are columns without text.

    Raises: ConfigError for a row that was cut, or a template in which the field does not stand exactly once.
    """
    if encoded.cut:
        raise ConfigError(
            f"{row.where}: {encoded.cut} tokens of the text did not fit and were left out, so its tokens cannot be "
            "shown; send a shorter text, or ask without echo or without logprobs."
        )
    [filled] = encoder.filled([row])
    places = [
        (index, hole) for index, item in enumerate(encoder.row.items) if isinstance(item, Text)
        for hole in item.parts if isinstance(hole, Hole)
    ]  # fmt: skip
    times = [hole.name for _, hole in places].count(name)
    if times != 1:
        raise ConfigError(
            f"{row.where}: the prompt's template holds the text {times} times, so its tokens cannot be shown; "
            "ask without echo or without logprobs."
        )
    first, alone = 0, True
    for index, item in enumerate(encoder.row.items):
        if not isinstance(item, Text) or item.ids is not None:
            first += len(item.ids or ())
            alone = alone and isinstance(item, Fixed) and not item.written
            continue
        whole = item.filled(filled[index])
        spans = encoder.pieces.offsets(whole, item.first)
        for hole, start, end in item.holes_at(filled[index]):
            if hole.name == name:
                found = _shared(row.fields[name], whole, spans, start, end)
                ahead = range(first) if alone and found and not found[0][0] else ()
                return [*((column, "") for column in ahead), *((first + n, part) for n, part in found)]
        first, alone = first + len(spans), False
    raise AssertionError("the field stands once")


def _shared(text: str, whole: str, spans: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, str]]:
    """Return the pieces between `start` and `end`, each with the part of the text that it ends; the last takes the
    rest."""
    touched = [n for n, (a, b) in enumerate(spans) if a < end and b > start]
    if not touched:
        return []
    offset = text.find(whole[start:end])  # a chat template may have stripped the text
    result, done = [], 0
    for n in range(touched[0], touched[-1] + 1):
        until = max(done, min(spans[n][1], end) - start + offset)
        result.append((n, text[done:until]))
        done = until
    return [*result[:-1], (result[-1][0], result[-1][1] + text[done:])]
