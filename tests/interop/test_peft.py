"""python -m pytest tests/interop/test_peft.py

The same prompt in PEFT and in Foreword: the same logits, and the same bytes on disk, in both directions.
"""

import dataclasses
import json

import peft
import pytest
import torch
from tokenizers import processors

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt, PrefixPrompt
from foreword.errors import ArtefactError, ConfigError
from foreword.interop.card import SAMPLE
from foreword.interop.peft import WITHOUT_CACHE, export, foreign, read, scale_of, scaled
from foreword.interop.peft_files import TENSORS, Adapter
from foreword.models.encoding.encoder import Encoder
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from tests.interop.beside import (
    EXACT,
    FAMILIES,
    WORDS,
    base,
    config_of,
    drawn,
    frozen,
    loaded,
    made,
    ours,
    quiet,
    rows,
    saved,
    task_type,
    template,
    text_ids,
    theirs,
    write,
)
from tests.models import zoo

METHODS = {
    "prompt": (peft.PromptTuningConfig, {}),
    "p-mlp": (peft.PromptEncoderConfig, {"encoder_hidden_size": 20}),
    "p-lstm": (peft.PromptEncoderConfig, {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 10}),
    "prefix": (peft.PrefixTuningConfig, {}),
    "prefix-projected": (peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 9}),
}
RELOADED = 2e-6  # a network run on a batch against the row it was folded to


def config(family: str, method: str):
    kind, options = METHODS[method]
    if family == "opt" and "prefix" not in method:
        options = {**options, "token_dim": 24}  # its embeddings are narrower than its layers, which PEFT overlooks
    return kind(task_type=task_type(family), num_virtual_tokens=4, **options)


def imported(source, family: str, **more) -> Artefact:
    return read(source, frozen(family), template=template(family), label_words=WORDS, **more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "opt", "gpt-neox", "bert", "roberta"])
def test_what_peft_saved_gives_its_logits_and_goes_back_byte_for_byte(family, method, tmp_path):
    """RoBERTa too: PEFT and Foreword agree on its positions, which start after the padding index."""
    model, lm = made(family, config(family, method)), frozen(family)
    saved(model, tmp_path / "theirs")
    artefact = imported(tmp_path / "theirs", family)
    encoded = rows(artefact, lm)
    wanted = [theirs(model, text_ids(row)) for row in encoded]
    assert zoo.gap(ours(lm, artefact, encoded), wanted) <= EXACT

    adapter = Adapter.load(tmp_path / "theirs")
    values = lm.dims.heads * lm.dims.head_size if "prefix" in method else 0  # behind the first layer's keys
    adapter.prompt_PX[1, values + 2] += 1.0  # the negative control: one number
    moved = ours(lm, imported(adapter, family), encoded)
    assert all(zoo.gap([one], [other]) > 100 * EXACT for one, other in zip(moved, wanted, strict=True))

    export(artefact, tmp_path / "ours", lm, base_model=f"tiny/{family}")
    files = [(tmp_path / who / TENSORS).read_bytes() for who in ("theirs", "ours")]
    assert files[0] == files[1]
    if method == "prefix-projected":
        folded = {**config_of(tmp_path / "theirs"), "prefix_projection": False}
        folded["encoder_hidden_size"] = folded["token_dim"]
        assert config_of(tmp_path / "ours") == folded
    else:
        texts = [(tmp_path / who / "adapter_config.json").read_bytes() for who in ("theirs", "ours")]
        assert texts[0] == texts[1]
    again = loaded(family, tmp_path / "ours")
    assert zoo.gap([theirs(again, text_ids(row)) for row in encoded], wanted) <= RELOADED
    saved(again, tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == files[0]


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_is_exported_and_agrees(family, kind, tmp_path):
    """Every family that can be exported; sliding windows and narrow embeddings among them."""
    lm = frozen(family)
    refused = kind == "PREFIX_TUNING" and lm.family in WITHOUT_CACHE
    if refused and not lm.takes_prefix:
        pytest.skip("Foreword gives no prefix to it either")
    artefact = imported(drawn(family, kind), family)
    if refused:
        with pytest.raises(ArtefactError, match="cache"):
            export(artefact, tmp_path / "x", lm)
        assert not (tmp_path / "x").exists()
        return
    export(artefact, tmp_path / "x", lm)
    model = loaded(family, tmp_path / "x")
    encoded = rows(artefact, lm)
    wanted = [theirs(model, text_ids(row)) for row in encoded]
    assert all(w.isfinite().all() for w in wanted)
    assert zoo.gap(ours(lm, artefact, encoded), wanted) <= EXACT


@pytest.mark.parametrize("family", [f for f in FAMILIES if frozen(f).family in WITHOUT_CACHE])
def test_peft_gives_no_prefix_to_the_families_that_are_refused(family):
    """Once PEFT can, this fails, and the family leaves the list."""
    dims = frozen(family).dims
    options = {"token_dim": dims.width, "num_attention_heads": dims.heads, "num_layers": dims.layers}
    model = made(family, peft.PrefixTuningConfig(task_type=task_type(family), num_virtual_tokens=4, **options))
    plain = zoo.logits(base(family), [5, 6, 7, 8])
    try:
        found = theirs(model, [5, 6, 7, 8])
    except (RuntimeError, TypeError):
        return
    assert torch.equal(found, plain)


def test_a_minimal_config_is_completed_as_peft_does(tmp_path):
    """Three keys, as by hand: PEFT and Foreword read the same, and what is exported has every key."""
    family = "llama"
    folder = write(drawn(family, "PREFIX_TUNING"), tmp_path / "x")
    artefact = imported(folder, family)
    encoded = rows(artefact, frozen(family))
    wanted = [theirs(loaded(family, folder), text_ids(row)) for row in encoded]
    assert zoo.gap(ours(frozen(family), artefact, encoded), wanted) <= EXACT
    dims = frozen(family).dims
    config = export(artefact, tmp_path / "y", frozen(family)).config
    assert (config["num_attention_heads"], config["token_dim"]) == (dims.heads, dims.heads * dims.head_size)
    assert dims.heads < frozen(family).query_heads


def test_an_import_says_what_it_is(tmp_path):
    adapter = drawn("bert", "P_TUNING")
    adapter.config.update({"base_model_name_or_path": "some/bert", "encoder_hidden_size": 7, "new_key": [1]})
    artefact = imported(write(adapter, tmp_path / "x"), "bert", labels=("bad", "good"))
    assert (artefact.method, artefact.form, artefact.format.labels) == ("p-tuning", "soft", ("bad", "good"))
    assert artefact.format.words == (("n",), ("y",))
    assert artefact.config == {"length": 3, "encoder": "mlp", "hidden": 7}
    assert artefact.recipe["imported"] == "peft"
    assert artefact.recipe["adapter"] == adapter.config
    again = Artefact.load(artefact.save(tmp_path / "artefact"))
    assert torch.equal(again.value.embed_PD, adapter.prompt_PX)
    assert "Imported from peft" in (tmp_path / "artefact" / "README.md").read_text()
    assert "some/bert" in (foreign(adapter, frozen("bert")) or "")
    adapter.config["base_model_name_or_path"] = frozen("bert").name
    assert foreign(adapter, frozen("bert")) is None


def test_where_the_slots_of_an_import_stand():
    adapter, lm = drawn("bert", "PROMPT_TUNING"), frozen("bert")

    def slots(source: str) -> list[int]:
        artefact = read(adapter, lm, template=source, label_words=WORDS)
        [row, *_] = rows(artefact, lm)
        return (row.slot_S >= 0).nonzero()[0].tolist()

    assert slots("{text} {mask}") == [0, 1, 2]
    assert slots("{soft:3}{text} {mask}") == [0, 1, 2]
    assert slots("{soft:2}{text}{soft:1}{mask}")[:2] == [0, 1]
    assert slots("{text}{soft:3}{mask}")[0] > 1
    for source, why in (("{soft:4}{text} {mask}", "4 positions"), ("{mask}", "names no field"), ("{text}", "mask")):
        with pytest.raises(ConfigError, match=why):
            slots(source)
    with pytest.raises(ConfigError, match="labels in their order"):
        read(adapter, lm, template="{text} {mask}")
    with pytest.raises(ConfigError, match="fills 0"):
        read(drawn("bert", "PREFIX_TUNING"), lm, template="{soft:3}{text} {mask}", label_words=WORDS)


def test_messages_have_no_place_before_everything():
    messages = [{"role": "user", "content": "{text}"}]
    with pytest.raises(ConfigError, match="before everything"):
        read(drawn("llama", "PROMPT_TUNING"), frozen("llama"), template=messages, label_words=WORDS)


def test_an_adapter_of_another_model_is_refused():
    """Other widths, the same number of columns from other layers, and a causal adapter for a masked model."""
    with pytest.raises(ArtefactError, match="32 numbers and 'OPTForCausalLM' has embeddings of 24"):
        imported(dataclasses.replace(drawn("gpt2", "PROMPT_TUNING")), "opt")
    with pytest.raises(ArtefactError, match="prefix of 192 numbers"):
        imported(drawn("gpt2", "PREFIX_TUNING"), "llama")
    adapter = drawn("gpt2", "PREFIX_TUNING")
    adapter.config.update({"num_layers": 6, "num_attention_heads": 2, "token_dim": 16})
    with pytest.raises(ArtefactError, match=r"\(6, 2, 16\)"):
        imported(adapter, "gpt2")
    with pytest.raises(ArtefactError, match="made for a causal model"):
        imported(drawn("gpt2", "PROMPT_TUNING"), "bert")


def test_what_peft_cannot_say_is_not_exported(tmp_path):
    """A slot after [CLS] or BOS, a text that starts beside its prefix, words, another model; nothing is left behind."""
    lm = frozen("bert")
    artefact = imported(drawn("bert", "PROMPT_TUNING"), "bert")
    after = dataclasses.replace(artefact, format=dataclasses.replace(artefact.format, soft_first=False))
    inside = read(drawn("bert", "PROMPT_TUNING"), lm, template="{text}{soft:3}{mask}", label_words=WORDS)
    split = read(drawn("bert", "PROMPT_TUNING"), lm, template="{soft:2}{text}{soft:1}{mask}", label_words=WORDS)
    prefix = imported(drawn("bert", "PREFIX_TUNING"), "bert")
    assert isinstance(prefix.value, PrefixPrompt)
    zero = dataclasses.replace(prefix, value=dataclasses.replace(prefix.value, start=0))
    words = dataclasses.replace(artefact, value=HardPrompt.empty(), method="manual")
    cases = [
        (after, "which puts its slot there"),
        (inside, "begins with its only slot"),
        (split, "begins with its only slot"),
        (zero, "start=after"),
        (words, "no prompt of numbers"),
        (imported(drawn("roberta", "PROMPT_TUNING"), "roberta"), "cannot be used with"),
    ]
    for case, why in cases:
        with pytest.raises(ArtefactError, match=why):
            export(case, tmp_path / "x", lm)
        assert list(tmp_path.iterdir()) == []


def test_a_slot_that_leads_without_bos_is_at_the_front(tmp_path):
    """Where the tokenizer adds nothing before a row, soft_first changes nothing, and the prompt can be exported."""
    bare = byte_tokenizer("causal")
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    for lm, begins in ((frozen("gpt2"), True), (wrap(zoo.build("gpt2"), bare), False)):
        artefact = read(drawn("gpt2", "PROMPT_TUNING"), lm, template=template("gpt2"), label_words=WORDS)
        after = dataclasses.replace(artefact, format=dataclasses.replace(artefact.format, soft_first=False))
        if begins:
            with pytest.raises(ArtefactError, match="soft-first"):
                export(after, tmp_path / "x", lm)
        else:
            export(after, tmp_path / "x", lm)
    assert (tmp_path / "x" / TENSORS).exists()


def test_a_folder_that_holds_more_is_left_alone(tmp_path):
    artefact = imported(drawn("gpt2", "PROMPT_TUNING"), "gpt2")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(ArtefactError, match="nothing was written"):
        export(artefact, mine, frozen("gpt2"))
    (mine / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtefactError, match="nothing was written"):
        export(artefact, mine, frozen("gpt2"))
    assert sorted(p.name for p in mine.iterdir()) == ["adapter_config.json", "notes.txt"]
    (mine / "notes.txt").unlink()
    export(artefact, mine, frozen("gpt2"))
    assert sorted(p.name for p in mine.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(ArtefactError, match="is a file"):
        export(artefact, mine / "README.md", frozen("gpt2"))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_the_card_has_what_peft_has_no_place_for(family, kind, tmp_path):
    """Template, label words, and a row whose token ids and answer column are those that scoring uses."""
    artefact = imported(drawn(family, kind), family)
    export(artefact, tmp_path / "x", frozen(family), base_model="a/model")
    text = (tmp_path / "x" / "README.md").read_text()
    assert text.startswith('---\nbase_model: "a/model"\nlibrary_name: peft\n')
    assert '"{text} :{' in text
    assert '- good: "y"' in text
    ids = json.loads(text.split("the `input_ids` are `")[1].split("`")[0])
    column = int(text.split("logits of column ")[1].split()[0])
    lm = frozen(family)
    encoded = Encoder.build(lm, artefact.format, artefact.value.text_start).encode({"text": SAMPLE})
    [mine] = ours(lm, artefact, [encoded])
    with torch.no_grad(), quiet():
        logits = loaded(family, tmp_path / "x")(input_ids=torch.tensor([ids])).logits[0]
    slots = len(logits) - len(ids)
    assert slots == (3 if kind == "PROMPT_TUNING" else 0)
    assert zoo.gap([mine[encoded.answer - slots]], [logits[column]]) <= EXACT
    assert family == "llama" or ids[column - slots] == lm.tokenizer.mask_token_id


def with_release(adapter: Adapter, release: str | None) -> Adapter:
    config = {k: v for k, v in adapter.config.items() if k != "peft_version"}
    return Adapter(config if release is None else {**config, "peft_version": release}, adapter.prompt_PX)


@pytest.mark.parametrize("release", [None, "0.17.1", "0.16.1.dev0@abc"])
def test_a_gemma_2_prompt_of_older_releases_is_scaled_as_the_model_scaled_it_then(release, tmp_path):
    """Before transformers 5.4 its forward pass multiplied all input embeddings; Gemma 3's embedding always did."""
    model, lm = made("gemma2", config("gemma2", "prompt")), frozen("gemma2")
    saved(model, tmp_path / "theirs")
    adapter = with_release(Adapter.load(tmp_path / "theirs"), release)
    artefact = imported(adapter, "gemma2")
    [row] = rows(artefact, lm)[:1]
    raw = zoo.build("gemma2")
    words = torch.nn.functional.embedding(torch.tensor(text_ids(row)), raw.get_input_embeddings().weight)
    with torch.no_grad():
        then = raw(inputs_embeds=(torch.cat([adapter.prompt_PX, words]) * lm.dims.width**0.5)[None]).logits[0]
    assert zoo.gap(ours(lm, artefact, [row]), [then[4:]]) <= EXACT
    now = with_release(adapter, "0.21.2")
    assert zoo.gap(ours(lm, imported(now, "gemma2"), [row]), [then[4:]]) > 100 * EXACT
    assert artefact.recipe["scaled_by"] == pytest.approx(lm.dims.width**0.5)
    assert "multiplied by 5.65685" in (scaled(adapter, lm) or "")
    assert "taken as transformers 5.4" in (scaled(now, lm) or "") and "scaled_by" not in imported(now, "gemma2").recipe


@pytest.mark.parametrize("release", ["0.18.0", "0.18.2.dev0@main", "unknown"])
def test_a_gemma_2_prompt_that_may_be_either_is_refused(release, tmp_path):
    saved(made("gemma2", config("gemma2", "prompt")), tmp_path / "theirs")
    adapter = with_release(Adapter.load(tmp_path / "theirs"), release)
    with pytest.raises(ArtefactError, match=r'which of them trained it is not recorded.*"peft_version": "0\.17\.1"'):
        imported(adapter, "gemma2")


@pytest.mark.parametrize(("family", "method"), [("gemma3", "prompt"), ("llama", "prompt"), ("gemma2", "prefix")])
def test_other_prompts_are_taken_as_they_are_whatever_the_release(family, method, tmp_path):
    saved(made(family, config(family, method)), tmp_path / "theirs")
    adapter = Adapter.load(tmp_path / "theirs")
    for release in (None, "0.18.0", "0.21.2"):
        one = with_release(adapter, release)
        assert scale_of(one, frozen(family)) == 1.0 and scaled(one, frozen(family)) is None
        assert "scaled_by" not in imported(one, family).recipe
