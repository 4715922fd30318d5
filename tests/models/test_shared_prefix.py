"""A compiled soft prompt is a prefix that scores as the soft prompt does.

python -m pytest tests/models/test_shared_prefix.py
"""

import pytest
import torch

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, stack
from foreword.core.template import Template
from foreword.errors import ConfigError, ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder, PlainRow
from foreword.models.score import score
from foreword.models.shared_prefix import compile_prompt
from foreword.models.tiny import tiny
from tests.models.zoo import CAUSAL, frozen

TEXTS = ["x", "a fine film", "long and winding, yet warm"]
LABELS = (("good",), ("bad", "poor"))


def format_of(source: str) -> Format:
    return Format(Template.parse(source), labels=("yes", "no"), words=LABELS)


def scores(lm: FrozenLM, rows: list[Encoded], bank: object) -> torch.Tensor:
    with torch.no_grad():
        return score(lm, rows, bank, torch.zeros(len(rows), dtype=torch.long))


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize(
    ("source", "whole"),
    [("{soft:3} {text}:", True), ("Say: {soft:2} and {text} {soft:1} so", False)],
    ids=["all", "part"],
)
def test_compiled_prompt_scores_as_the_soft_prompt(family: str, source: str, whole: bool) -> None:
    lm, format = frozen(family, torch.float64), format_of(source)
    soft = SoftPrompt(torch.randn(3, lm.dims.width, dtype=torch.float64))
    rows = Encoder.build(lm, format).encode_rows([PlainRow({"text": text}) for text in TEXTS])
    expected = scores(lm, rows, stack([soft], lm.embed))
    compiled = compile_prompt(lm, format, soft)
    assert (compiled.rest is None) == whole
    assert compiled.columns == compiled.prefix.start == compiled.prefix.length
    cut = [compiled.after(row) for row in rows]
    assert (scores(lm, cut, compiled.bank(lm)) - expected).abs().max() < 1e-10
    other = compile_prompt(lm, format, SoftPrompt(soft.embed_PD + torch.eye(3, lm.dims.width)))
    assert (scores(lm, cut, other.bank(lm)) - expected).abs().max() > 1e-4


def test_words_compile_too() -> None:
    lm, format = tiny("causal"), format_of("{soft:'Judge this'} {text} It was")
    encoder = Encoder.build(lm, format)
    rows = encoder.encode_rows([PlainRow({"text": text}) for text in TEXTS])
    ids = encoder.init_ids_P
    assert ids is not None
    compiled = compile_prompt(lm, format, HardPrompt(ids))
    expected = scores(lm, rows, stack([HardPrompt(ids)], lm.embed))
    assert (scores(lm, [compiled.after(row) for row in rows], compiled.bank(lm)) - expected).abs().max() < 1e-4


def test_what_cannot_be_compiled_says_why() -> None:
    causal, masked = tiny("causal"), tiny("masked")
    soft = SoftPrompt(torch.zeros(2, 32))
    with pytest.raises(ModelError, match="is a masked model: what leads a row sees the text"):
        compile_prompt(masked, format_of("{soft:2} {text} {mask}"), soft)
    with pytest.raises(ConfigError, match="slots for 3 positions and the prompt given has 2"):
        compile_prompt(causal, format_of("{soft:3} {text}"), soft)
    with pytest.raises(ConfigError, match="nothing constant leads"):
        compile_prompt(causal, format_of("no field here {soft:2}"), soft)
    prefix = PrefixPrompt({"self": (torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8))}, 2)
    with pytest.raises(ConfigError, match="a prefix already"):
        compile_prompt(causal, format_of("{text}"), prefix)
