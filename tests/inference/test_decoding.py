"""How texts are decoded: as the library decodes the same words, in any company, with any cache.

Run: python -m pytest tests/inference/test_decoding.py
"""

import json
from dataclasses import replace

import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Decoding
from foreword.core.inject import PrefixBatch
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, stack
from foreword.errors import ConfigError
from foreword.inference.generation import encode_to_write, write_rows
from foreword.models.base import FrozenLM, Inputs
from foreword.models.encoding.batch import collate, prepare
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.tasks.rows import Row
from tests.compiled import graphs_of, lines_of
from tests.inference.test_generation import NOTHING, artefact, rows
from tests.models.zoo import build

NEW = 10
FORMS = ("words", "one vector", "vectors", "one key", "keys")


def ending(family: str, share: float = 0.1) -> FrozenLM:
    """A model for which many pieces end a text, so that texts end early and at different lengths."""
    model = build(family, torch.float64)
    ends = list(range(3, int(share * model.config.vocab_size)))
    model.config.eos_token_id = ends
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ends
    return wrap(model, byte_tokenizer("causal"), kind="causal")


def put(lm: FrozenLM, form: str, decoding: Decoding) -> Artefact:
    """A prompt of the form, with lengths 0, 1 and more."""
    torch.manual_seed(len(form))
    if form == "words":
        return artefact(lm, NOTHING, "Say: {text}{answer}", decoding)
    if form.endswith(("vector", "vectors")):
        length = 1 if form == "one vector" else 5
        soft = SoftPrompt(torch.randn(length, lm.dims.width, dtype=lm.dtype))
        return artefact(lm, soft, f"{{soft:{length}}} {{text}}:{{answer}}", decoding)
    length = 1 if form == "one key" else 4
    keys = torch.randn(2, lm.dims.layers, length, lm.dims.heads, lm.dims.head_size, dtype=lm.dtype)
    return artefact(lm, PrefixPrompt({"self": (keys[0], keys[1])}, length), "{text}{answer}", decoding)


def library(lm: FrozenLM, made: Artefact, row: Row, **options: object) -> list[int]:
    """The library's own generation after the row's words alone, unpadded."""
    assert isinstance(lm, HFLM) and made.format.decoding is not None
    [encoded] = encode_to_write(lm, made.format, [row])
    ids = torch.tensor(encoded.ids_S)[None]
    new = lm._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, pad_token_id=1, **options)
    found = new[0, ids.shape[1] :].tolist()
    return found[: next((n for n, id in enumerate(found) if id in lm.stops), len(found))]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 5, "length_penalty": 2.0},
        {"num_beams": 5, "length_penalty": -1.0},
        {"min_new_tokens": 4},
        {"num_beams": 3, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_words_are_continued_as_the_library_continues_them(family, options):
    lm, some = ending(family, 0.15), rows(7, 11)
    made = put(lm, "words", Decoding(NEW, **options))
    theirs = {"do_sample": False, "early_stopping": True, **options} if "num_beams" in options else options
    expected = [lm.tokenizer.decode(library(lm, made, row, **theirs), skip_special_tokens=True) for row in some]
    assert write_rows(lm, [(made, some)])[0] == expected
    assert len({len(text) for text in expected}) > 1  # they end at different lengths


@pytest.mark.filterwarnings("ignore:Passing `[a-z_]+` with `inputs_embeds`")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1}]
)
def test_what_was_written_is_looked_back_at_as_in_the_library(family, beams, options):
    """The library too sees what was written alone where it is given vectors instead of words."""
    lm, some = wrap(build(family, torch.float64), byte_tokenizer("causal"), kind="causal"), rows(9, 12)
    assert isinstance(lm, HFLM)
    made = put(lm, "words", Decoding(NEW, num_beams=beams, **options))
    embed = lm._model.get_input_embeddings()
    expected = []
    for row in some:
        [encoded] = encode_to_write(lm, made.format, [row])
        ids = torch.tensor(encoded.ids_S)[None]
        with torch.no_grad():
            new = lm._model.generate(
                inputs_embeds=embed(ids), attention_mask=torch.ones_like(ids), max_new_tokens=NEW, pad_token_id=1,
                do_sample=False, num_beams=beams, early_stopping=beams > 1, **options,
            )[0].tolist()  # fmt: skip
        stop = next((n for n, id in enumerate(new) if id in lm.stops), len(new))
        expected.append(lm.tokenizer.decode(new[:stop], skip_special_tokens=True))
    found = write_rows(lm, [(made, some)])[0]
    assert found == expected
    again = [write_rows(lm, [(made, [row])])[0][0] for row in some]
    assert again == found  # the library's own beams differ here where rows are padded
    plain = replace(made, format=replace(made.format, decoding=Decoding(NEW, num_beams=beams)))
    assert write_rows(lm, [(plain, some)])[0] != found


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(NEW),
        Decoding(NEW, num_beams=5, length_penalty=0.5),
        Decoding(NEW, do_sample=True, top_k=40, top_p=0.9, temperature=1.3, seed=4),
        Decoding(NEW, repetition_penalty=1.5, no_repeat_ngram_size=2, min_new_tokens=3),
    ],
    ids=["greedy", "beams", "sampled", "looking back"],
)
def test_every_form_and_length_in_one_batch_writes_what_each_row_writes_alone(family, decoding):
    lm = ending(family, 0.06)
    pairs = [(put(lm, form, decoding), rows(4, seed)) for seed, form in enumerate(FORMS)]
    together = write_rows(lm, pairs)
    alone = [[write_rows(lm, [(made, [row])])[0][0] for row in some] for made, some in pairs]
    assert together == alone
    assert len({len(text) for some in together for text in some}) > 3


def test_a_beam_ends_where_its_text_has_a_stop_string():
    """Against the beams of a model for which that letter's piece is an end."""
    model = build("gpt2", torch.float64)
    byte = byte_tokenizer("causal")
    lm = wrap(model, byte, kind="causal")
    some = rows(8, 13)
    free = put(lm, "words", Decoding(NEW, num_beams=3))
    letters = "".join(write_rows(lm, [(free, some)])[0])
    stop = max(set(letters) - {"\ufffd"}, key=letters.count)
    assert byte(stop, add_special_tokens=False)["input_ids"].__len__() == 1
    made = replace(free, format=replace(free.format, decoding=Decoding(NEW, num_beams=3, stop_strings=(stop,))))
    found = write_rows(lm, [(made, some)])[0]
    other = build("gpt2", torch.float64)
    ends = [3, *byte(stop, add_special_tokens=False)["input_ids"]]
    other.config.eos_token_id = ends
    assert other.generation_config is not None
    other.generation_config.eos_token_id = ends
    expected = write_rows(wrap(other, byte, kind="causal"), [(free, some)])[0]
    assert found == expected and not any(stop in text for text in found)


def asked(lm: FrozenLM, form: str) -> tuple[Inputs, PrefixBatch | None]:
    """Rows of several lengths with a prompt of the form."""
    made, some = put(lm, form, Decoding(NEW)), rows(5, 14)
    assert isinstance(made.value, HardPrompt | SoftPrompt | PrefixPrompt)
    bank, task_B = stack([made.value], lm.embed), torch.zeros(len(some), dtype=torch.long)
    inputs, prefix = prepare(lm, collate(encode_to_write(lm, made.format, some, 4), "left"), bank, task_B)
    assert (prefix is not None) == (form in ("one key", "keys"))
    return inputs, prefix


GREEDY = {"pad_token_id": 1, "max_new_tokens": NEW, "do_sample": False}


@pytest.mark.parametrize("form", FORMS)
def test_a_static_cache_writes_the_same_with_every_form(form):
    lm = wrap(build("llama"), byte_tokenizer("causal"), kind="causal")
    inputs, prefix = asked(lm, form)
    static = lm.generate(inputs, prefix, **GREEDY, cache_implementation="static", disable_compile=True)
    assert lm.generate(inputs, prefix, **GREEDY).tolist() == static.tolist()


@pytest.mark.slow
def test_compiled_decoding_writes_the_same_with_every_form():
    found = json.loads(lines_of(__file__)[-1])
    assert found == [{"form": form, "same": True, "compiled": True} for form in FORMS]


def compiled(form: str) -> dict[str, object]:
    """Whether decoding through torch.compile and a static cache gives what it gives without, and that it compiled."""
    lm = wrap(build("llama"), byte_tokenizer("causal"), kind="causal")
    inputs, prefix = asked(lm, form)
    got, graphs = graphs_of(  # graphs of all forms so far: one that fits is used again
        lambda how: lm.generate(inputs, prefix, **GREEDY, cache_implementation="static", compile_config=how)
    )
    return {
        "form": form,
        "same": got.tolist() == lm.generate(inputs, prefix, **GREEDY).tolist(),
        "compiled": graphs > 0,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_new_tokens": 99}, "min_new_tokens is 99; it must be between 0 and max_new_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"num_beams": 2, "do_sample": True}, "choose one"),
    ],
)
def test_decodings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Decoding(**changes)


def test_what_differs_from_the_defaults_is_recorded_and_read_back():
    decoding = Decoding(9, min_new_tokens=2, repetition_penalty=1.2, no_repeat_ngram_size=3, num_beams=4)
    assert Decoding.from_json(decoding.to_json()) == decoding
    assert Decoding().to_json() == {}


if __name__ == "__main__":
    print(json.dumps([compiled(form) for form in FORMS]))
