"""Ten thousand random templates, texts and lengths: what is rendered fits, and nothing but what may be cut is cut.

python -m pytest tests/models/encoding/test_encode_many.py
"""

import random

import pytest

from foreword.core.demos import Example, with_demos
from foreword.core.format import Format
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.models.encoding.encoder import Encoder
from tests.models.trained import TextLM, byte_bpe, masked_byte_bpe
from tests.seeds import new_seed

CASES = 10_000
WORDS = "film story plot actor scene music joke idea hour line".split()
MARKS = ["", "[MASK]", "{text}", "</s>", "a\x00b", "\u202eאב", "🙂"]
TOKENIZERS = {"masked": masked_byte_bpe(), "causal": byte_bpe()}


def words(rng: random.Random, most: int) -> str:
    """Some words, none perhaps, and now and then what looks like a special token."""
    return " ".join(rng.choices([*WORDS, rng.choice(MARKS)], k=rng.randrange(most)))


def drawn(rng: random.Random, kind: str) -> tuple[Template, dict[str, str], list[str]]:
    """A template with fixed words around its fields, the fields' texts, and the fixed words in order."""
    fields = ["a", "b"][: rng.randint(1, 2)]
    marked = rng.random() < 0.7
    fixed, source = [], ""
    for number, name in enumerate(fields):
        word = f"w{rng.randrange(1000)}"
        fixed.append(word)
        source += f"{word} {{{name}{'|shorten' if marked and number == 0 else ''}}} "
    fixed.append(f"end{rng.randrange(1000)}")
    source += fixed[-1] + (" {mask} ." if kind == "masked" else ": {answer}")
    template = Template.parse(source)
    if rng.random() < 0.5:
        shown = [Example({n: words(rng, 5) for n in fields}, rng.choice(WORDS)) for _ in range(rng.randint(1, 3))]
        template = with_demos(template, shown, " ; ")
    return template, {name: words(rng, 60) for name in fields}, fixed


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ten_thousand_rows_fit_with_their_fixed_text_whole(kind):
    rng = random.Random(seed := new_seed(10**9))
    tokenizer = TOKENIZERS[kind]
    cut = 0
    for number in range(CASES):
        template, row, fixed = drawn(rng, kind)
        limit, truncate = rng.randint(20, 140), rng.choice(["tail", "head", "middle"])
        form = Format(template, ("0", "1"), (("good",), ("bad",)), truncate=truncate, max_length=limit)
        refused, found = "", None
        try:
            found = Encoder.build(TextLM(tokenizer, kind, 10_000), form).encode(row)
        except (ConfigError, DataError) as error:
            refused = str(error)
        if found is None:  # the template alone is longer, or only fields that may not be cut are left
            assert "template alone" in refused or "cannot be cut" in refused, (seed, number, refused)
            continue
        assert len(found) <= limit, (seed, number)
        ids = found.ids_S.tolist()
        text = tokenizer.decode(ids)
        at = text.rfind(fixed[0])
        for word in fixed:
            at = text.find(word, at)
            assert at >= 0, (seed, number, word, text)
        if kind == "masked":
            assert ids.count(tokenizer.mask_token_id) == 1, (seed, number)
            assert ids[found.answer] == tokenizer.mask_token_id, (seed, number)
        whole = Encoder.build(TextLM(tokenizer, kind, 10_000), Format(template, form.labels, form.words)).encode(row)
        assert found.cut == len(whole.ids_S) - len(ids) == max(0, len(whole) - limit), (seed, number)
        cut += found.cut > 0
    assert cut > CASES / 20, "few rows were cut, so little was tried"
