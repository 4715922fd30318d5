"""Exports for vLLM against its documented format, and the exported client against Foreword itself.

Run: python -m pytest tests/interop/test_vllm.py
"""

import functools
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from openai import OpenAI

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt, stack
from foreword.core.template import Template
from foreword.errors import ArtefactError
from foreword.inference.predictor import Prompted
from foreword.interop.vllm import export
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder, collate, prepare
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from tests.interop.standin import documented, serving
from tests.models import trained, zoo

LABELS = {"labels": ("bad", "good"), "words": (("dull", "terrible"), ("good", "great film"))}
TEMPLATES = [
    "{soft:4}{text} It was {answer}",
    "Review: {text}{soft:3} It was {answer}",
    "{soft:2}{text|shorten}{soft:'a fine film'} So, {text}: {answer}",
    "{soft:3} {text}{answer}",
    "{text}",
]
TEXTS = ["a fine film", " spaced  out ", "</s> {text} <s>", "א 🙂\n\tend", "the plot was dull, the acting bad"]
FIRST = {"soft_first": True}
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def llama(name: str, dtype: torch.dtype = torch.float32, chat: bool = False) -> tuple[Any, Any]:
    """A random model, attending as transformers does, over a tokenizer of this design."""
    made = trained.CAUSAL[name]()
    if chat:
        made.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
        made.chat_template = CHAT
    config = transformers.LlamaConfig(**{**zoo.DECODER, "vocab_size": len(made), "max_position_embeddings": 200})
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(config).to(dtype).eval(), made


def drawn(lm: FrozenLM, source: Any, value: Any = None, **options: Any) -> Artefact:
    """A soft prompt at the scale of words in all of the template's slots."""
    form = Format(Template.parse(source), **{**LABELS, **options})
    if value is None:
        scale = float(lm.embed(torch.arange(20)[None]).float().std())
        length = Encoder.build(lm, form).prompt_length
        value = SoftPrompt(scale * torch.randn(length, lm.dims.width, generator=torch.Generator().manual_seed(5)))
    made = {"name": lm.name, "kind": lm.kind}
    return Artefact(value, form, "prompt-tuning", {}, 0, made, asdict(lm.fingerprint()), form.template.fields)


def client_of(folder: Path) -> ModuleType:
    """The exported client as a module of its own."""
    spec = importlib.util.spec_from_file_location("exported_client", folder / "client.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_foreword(lm: FrozenLM, artefact: Artefact, fields: dict[str, str]) -> torch.Tensor:
    encoded = Encoder.build(lm, artefact.format).encode(fields)
    inputs, _ = prepare(lm, collate([encoded]), stack([artefact.value], lm.embed), torch.zeros(1, dtype=torch.long))
    return inputs.embed_BSD[0]


def exported_rows(tmp_path: Path, artefact: Artefact, lm: FrozenLM, model: Any, tokenizer: Any) -> None:
    """Every text's row by the exported client is bit for bit Foreword's."""
    export(artefact, tmp_path / "x", lm)
    client = client_of(tmp_path / "x")
    row, prompt = client.load(tmp_path / "x")
    for text in TEXTS:
        fields = dict.fromkeys(artefact.format.template.fields, text)
        vectors = client.row_embeds(*client.row_ids(row, tokenizer, fields), model.get_input_embeddings(), prompt)
        wanted = in_foreword(lm, artefact, fields)
        assert vectors.dtype == wanted.dtype
        assert torch.equal(vectors, wanted)


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("name", ["byte_bpe", "first_space_bpe", "wordpiece"])
def test_the_clients_rows_are_forewords(tmp_path, name, source):
    model, tokenizer = llama(name)
    lm = wrap(model, tokenizer)
    options = FIRST if source.startswith("{soft:4}") else {}
    exported_rows(tmp_path, drawn(lm, source, **options), lm, model, tokenizer)


def test_rows_of_messages(tmp_path):
    model, tokenizer = llama("byte_bpe", chat=True)
    lm = wrap(model, tokenizer)
    messages = [{"role": "user", "content": " {soft:3} Is it good? {text} "}]
    exported_rows(tmp_path, drawn(lm, messages), lm, model, tokenizer)


def test_rows_of_rounded_models_and_of_words(tmp_path):
    """The prompt is rounded to the model's dtype, as Foreword does; a prompt of pieces becomes their vectors."""
    model, tokenizer = llama("byte_bpe", torch.bfloat16)
    lm = wrap(model, tokenizer)
    exported_rows(tmp_path / "a", drawn(lm, TEMPLATES[0]), lm, model, tokenizer)
    pieces = HardPrompt(torch.tensor([40, 41, 42, 300]))
    exported_rows(tmp_path / "b", drawn(lm, TEMPLATES[0], pieces), lm, model, tokenizer)
    prompt = torch.load(tmp_path / "b" / "x" / "prompt.pt", weights_only=True)
    assert torch.equal(prompt, model.get_input_embeddings()(pieces.ids_P))
    exported_rows(
        tmp_path / "c", drawn(lm, "Say: {text} {answer}", HardPrompt.empty()), lm, model,
        tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt2"])
def test_text_has_the_vectors_that_the_model_begins_with(tmp_path, family):
    """Scaled where the model scales (Gemma): the text's vectors are the model's own, before its first layer."""
    model = zoo.build(family)
    lm = zoo.frozen(family)
    artefact = drawn(lm, "{soft:2}{text}")
    export(artefact, tmp_path / "x", lm)
    client = client_of(tmp_path / "x")
    row, prompt = client.load(tmp_path / "x")
    ids, slots = client.row_ids(row, lm.tokenizer, {"text": "so it goes"})
    vectors = client.row_embeds(ids, slots, model.get_input_embeddings(), prompt)
    with torch.no_grad():
        begins = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[0][0]
        if family == "gpt2":  # which adds its positions inside, to whatever it is given
            begins = begins - model.transformer.wpe(torch.arange(len(ids)))
    text = torch.tensor(slots) < 0
    torch.testing.assert_close(vectors[text], begins[text], rtol=0, atol=1e-6)
    assert ("scales its embeddings" in (tmp_path / "x" / "README.md").read_text()) == family.startswith("gemma")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_documented_format(tmp_path, dtype):
    """Files and requests: one dense tensor of floats, [tokens, hidden], read without running anything."""
    model, tokenizer = llama("byte_bpe", dtype)
    lm = wrap(model, tokenizer)
    artefact = drawn(lm, TEMPLATES[0])
    returned = export(artefact, tmp_path / "x", lm)
    file = (tmp_path / "x" / "prompt.pt").read_bytes()
    assert torch.equal(documented(b64encode(file).decode(), lm.dims.width), artefact.value.embed_PD)
    assert returned.shape == (4, lm.dims.width)
    client = client_of(tmp_path / "x")
    row, prompt = client.load(tmp_path / "x")
    vectors = client.row_embeds(*client.row_ids(row, tokenizer, {"text": "so"}), model.get_input_embeddings(), prompt)
    sent = documented(client.to_base64(vectors), model.config.hidden_size)
    assert (sent.dtype, sent.requires_grad) == (dtype, False)
    assert torch.equal(sent, vectors)


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(3, 32, dtype=torch.long), torch.ones(32), torch.ones(1, 3, 32), torch.ones(3, 31), [torch.ones(3, 32)],
     torch.ones(0, 32), torch.ones(3, 32).to_sparse(), ArtefactError("code")],
)  # fmt: skip
def test_the_stand_in_takes_nothing_else(wrong):
    buffer = io.BytesIO()
    torch.save(wrong, buffer)
    with pytest.raises(ValueError, match="not "):
        documented(b64encode(buffer.getvalue()).decode(), 32)


@pytest.mark.parametrize("name", ["byte_bpe", "first_space_bpe"])
def test_a_server_answers_what_foreword_does(tmp_path, name):
    """Label probabilities, words of several pieces included, and greedy text, through the openai client."""
    model, tokenizer = llama(name)
    lm = wrap(model, tokenizer)
    artefact = drawn(lm, TEMPLATES[2])
    export(artefact, tmp_path / "x", lm, base_model="some/llama")
    client = client_of(tmp_path / "x")
    client.LIKELIEST = len(tokenizer)  # a random model's label words are seldom among the 20 likeliest
    row, prompt = client.load(tmp_path / "x")
    assert any(len(word) > 1 for words in row["labels"].values() for word in words)
    asked: list[dict[str, Any]] = []
    moved: list[float] = []
    with serving(model, tokenizer, asked) as address, OpenAI(base_url=address, api_key="none") as openai:
        common = (openai, "some/llama", row, tokenizer, model.get_input_embeddings())
        for text in TEXTS:
            found = client.classify(*common, prompt, {"text": text})
            wanted = Prompted(lm, artefact).predict([text])[0].probabilities
            assert found == pytest.approx(wanted, abs=1e-5)
            other = client.classify(*common, -prompt, {"text": text})
            moved.append(max(abs(math.log(other[label] / wanted[label])) for label in wanted))
        assert max(moved) > 0.1  # the prompt is read
        text = client.go_on(*common, prompt, {"text": TEXTS[0]}, 12)
    vectors = in_foreword(lm, artefact, {"text": TEXTS[0]})
    with torch.no_grad():
        greedy = model.generate(
            inputs_embeds=vectors[None], attention_mask=torch.ones(1, len(vectors), dtype=torch.long),
            max_new_tokens=12, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    assert text == tokenizer.decode(greedy[0], skip_special_tokens=True)
    assert all(body["model"] == "some/llama" and not body.get("prompt") for body in asked)


def test_the_client_as_a_program(tmp_path):
    """With the model in a folder, and a text in another process: what it prints is Foreword's answer."""
    model, tokenizer = llama("byte_bpe")
    lm = wrap(model, tokenizer)
    artefact = drawn(lm, TEMPLATES[0])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    export(artefact, tmp_path / "x", lm, base_model=str(tmp_path / "base"))
    source = (tmp_path / "x" / "client.py").read_text().replace("LIKELIEST = 20", f"LIKELIEST = {len(tokenizer)}")
    (tmp_path / "x" / "client.py").write_text(source)
    assert "foreword" not in source.split('"""', 2)[2].lower()
    with serving(model, tokenizer, []) as address:
        ran = subprocess.run(
            [sys.executable, tmp_path / "x" / "client.py", "--url", address, "--served-as", "y", *TEXTS[:2]],
            capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    for line, one in zip(ran.stdout.splitlines(), Prompted(lm, artefact).predict(TEXTS[:2]), strict=True):
        assert json.loads(line) == pytest.approx(one.probabilities, abs=1e-5)


def test_what_the_client_refuses(tmp_path):
    model, tokenizer = llama("byte_bpe")
    lm = wrap(model, tokenizer)
    export(drawn(lm, TEMPLATES[0], max_length=20), tmp_path / "x", lm)
    client = client_of(tmp_path / "x")
    row, prompt = client.load(tmp_path / "x")
    with pytest.raises(ValueError, match=r"there is room for 20; shorten"):
        client.row_ids(row, tokenizer, {"text": "a long text " * 20})
    with pytest.raises(ValueError, match="special token"):
        client.row_ids({**row, "special": tokenizer("x")["input_ids"]}, tokenizer, {"text": "x"})
    common = (tokenizer, model.get_input_embeddings(), prompt, {"text": "a"})
    with serving(model, tokenizer, []) as address, OpenAI(base_url=address, api_key="none") as openai:
        client.LIKELIEST = 1
        with pytest.raises(ValueError, match="max-logprobs"):
            client.classify(openai, "m", row, *common)
        with pytest.raises(ValueError, match="no labels"):
            client.classify(openai, "m", {**row, "labels": {}}, *common)


def test_what_vllm_has_no_way_to_be_given(tmp_path):
    model, tokenizer = llama("byte_bpe")
    lm = wrap(model, tokenizer)
    prefix = lm.prefix_from_words(torch.tensor([5, 6]))
    assert isinstance(prefix, PrefixPrompt)
    with pytest.raises(ArtefactError, match="foreword serve"):
        export(drawn(lm, "{text}", prefix), tmp_path / "x", lm)
    masked, decoder = wrap(zoo.build("bert"), byte_tokenizer("masked")), zoo.frozen("bert-decoder")
    for other, source, words in ((masked, "{soft:2}{text} {mask}", "a masked"), (decoder, "{soft:2}{text}", "y bert;")):
        with pytest.raises(ArtefactError, match=words):
            export(drawn(other, source), tmp_path / "x", other)
    opt = zoo.frozen("opt")
    with pytest.raises(ArtefactError, match="narrower"):
        export(drawn(opt, "{soft:2}{text}"), tmp_path / "x", opt)
    other = zoo.frozen("llama")
    with pytest.raises(ArtefactError):
        export(drawn(lm, TEMPLATES[0]), tmp_path / "x", other)
    assert not (tmp_path / "x").exists()
