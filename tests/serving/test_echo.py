"""A prompt's own tokens with their log-probabilities. python -m pytest tests/serving/test_echo.py"""

import json
import random

import pytest
import torch
import transformers

from foreword.core.prompts import stack
from foreword.models.encoding.batch import collate, prepare
from foreword.models.encoding.encoder import Encoder, PlainRow
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import wrap
from foreword.serving.app import Limits
from tests.serving.made import artefact
from tests.serving.running import ROOM, client, filled, server

WORDS = "river garden window, teacher winter bread! horse letter music 42 island Straße 東京 naïve 🙂".split()


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=263, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=256, initializer_range=0.3, pad_token_id=1,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def lm(plain):
    return wrap(plain, byte_tokenizer("causal"))


@pytest.fixture(scope="module")
def http(lm, tmp_path_factory):
    root = filled(tmp_path_factory.mktemp("echo") / "store", lm)
    with server(root, lm, Limits(), ROOM) as own, client(own) as made:
        yield made


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))


@torch.no_grad()
def library(plain, ids: list[int]) -> list[float]:
    """The log-probability of every token but the first, by the library's own forward pass."""
    logp = plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logp[t - 1, ids[t]]) for t in range(1, len(ids))]


def harness(choice: dict, context: int) -> tuple[float, bool]:
    """What an evaluation harness makes of an answer: the sum after the context, without the one new token, and whether
    each token is the likeliest."""
    told = choice["logprobs"]
    part = told["token_logprobs"][context:-1]
    return sum(part), all(x == max(top.values()) for x, top in zip(part, told["top_logprobs"][context:-1], strict=True))


def test_tokens_of_the_prompt_are_the_library_s(http, lm, plain):
    rng = random.Random(3)
    texts = [text_of(rng) for _ in range(6)]
    asked = {"model": lm.name, "prompt": texts, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = http.post("/v1/completions", json=asked).json()
    for text, choice in zip(texts, answer["choices"], strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(told["top_logprobs"]) == len(told["text_offset"]) == len(ids) + 1
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        wanted = library(plain, ids)
        assert told["token_logprobs"][1:-1] == pytest.approx(wanted, abs=2e-5)
        assert "".join(told["tokens"][:-1]) == text and choice["text"].startswith(text)
        for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
            assert choice["text"][offset : offset + len(token)] == token
        cut = rng.randint(1, len(ids) - 1)
        total, greedy = harness(choice, cut)
        assert total == pytest.approx(sum(wanted[cut - 1 :]), abs=1e-4) and not greedy
        other = library(plain, [*ids[:-1], (ids[-1] + 1) % 263])  # another last token: the comparison could fail
        assert abs(other[-1] - told["token_logprobs"][-2]) > 1e-4


def test_a_token_is_greedy_where_the_library_s_likeliest_is_the_same(http, lm, plain):
    """Texts that end with what the model would say next, of which some are plain letters."""
    rng = random.Random(9)
    texts = []
    while len(texts) < 4:
        text = text_of(rng)
        with torch.no_grad():
            best = int(plain(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0, -1].argmax())
        letter = lm.tokenizer.decode([best])
        if letter.isascii() and letter.isalnum() and lm.tokenizer(text + letter)["input_ids"][-1] == best:
            texts.append(text + letter)
    asked = {"model": lm.name, "prompt": texts, "max_tokens": 1, "echo": True, "logprobs": 1}
    for text, choice in zip(texts, http.post("/v1/completions", json=asked).json()["choices"], strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        assert harness(choice, len(ids) - 1)[1] and not harness(choice, 1)[1]
        with torch.no_grad():
            likeliest = plain(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        told = choice["logprobs"]
        for n in range(1, len(ids)):
            assert (told["token_logprobs"][n] == max(told["top_logprobs"][n].values())) == (likeliest[n - 1] == ids[n])


def test_nothing_new_need_follow(http, lm):
    asked = {"model": lm.name, "prompt": ["a film", "b"], "max_tokens": 0, "echo": True, "logprobs": 2}
    whole = http.post("/v1/completions", json=asked).json()
    assert [c["text"] for c in whole["choices"]] == ["a film", "b"]
    assert [c["finish_reason"] for c in whole["choices"]] == ["length", "length"]
    assert whole["usage"]["completion_tokens"] == 0
    longer = http.post("/v1/completions", json={**asked, "max_tokens": 3}).json()
    for short, more in zip(whole["choices"], longer["choices"], strict=True):
        count = len(short["logprobs"]["tokens"])
        assert more["logprobs"]["tokens"][:count] == short["logprobs"]["tokens"]
        assert more["logprobs"]["token_logprobs"][1:count] == pytest.approx(short["logprobs"]["token_logprobs"][1:])
    bare = http.post("/v1/completions", json={**asked, "logprobs": None}).json()
    assert [c["text"] for c in bare["choices"]] == ["a film", "b"] and bare["choices"][0]["logprobs"] is None
    refused = http.post("/v1/completions", json={**asked, "echo": False})
    assert refused.status_code == 400 and "echo" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["two", "acme-words", "acme-reviews", "beta"])
def test_a_learnt_prompt_s_text_is_scored_after_its_prompt(http, lm, name):
    """By another road: the text's tokens as one label each, read with the whole row."""
    form = {"acme-reviews": "ahead", "acme-words": "hard", "beta": "prefix", "two": "behind"}[name]
    seed = ["acme-reviews", "acme-words", "beta", "two"].index(name)
    made = artefact(lm, form, seed=seed)
    text = "a fine film, 42"
    asked = {"model": name, "prompt": text, "max_tokens": 2, "echo": True, "logprobs": 0, "temperature": 0}
    [choice] = http.post("/v1/completions", json=asked).json()["choices"]
    told = choice["logprobs"]
    assert choice["text"].startswith(text) and choice["text"].startswith("".join(told["tokens"]))
    count = next(n for n, offset in enumerate(told["text_offset"]) if offset >= len(text))
    extra = made.value.start if form == "prefix" else 0
    [row] = Encoder.build(lm, made.format.without_labels(), extra).encode_rows([PlainRow({"text": text})])
    ids = [int(i) for i in row.ids_S]
    own = lm.tokenizer(text, add_special_tokens=False)["input_ids"][1:]  # its first byte may join the template's space
    at = next(n for n in range(len(ids)) if ids[n : n + len(own)] == own)
    batch = collate([row])
    read = torch.arange(at - 1, at + len(own) - 1)[None]
    with torch.no_grad():
        bank, zero = stack([made.value], lm.embed), torch.zeros(1, dtype=torch.long)
        inputs, prefix = prepare(lm, type(batch)(**{**vars(batch), "read_BR": read}), bank, zero)
        logp = lm.vocabulary_logits(lm.hidden_at(inputs, prefix)[0]).double().log_softmax(-1)
    wanted = [float(logp[n, id]) for n, id in enumerate(own)]
    assert told["token_logprobs"][0] is None
    assert told["token_logprobs"][count - len(own) : count] == pytest.approx(wanted, abs=2e-5)


def test_streams_begin_with_the_prompt_s_tokens(http, lm):
    asked = {"model": lm.name, "prompt": ["a film", "b"], "max_tokens": 3, "echo": True, "logprobs": 1, "seed": 5}
    whole = http.post("/v1/completions", json=asked).json()["choices"]
    with http.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    parts = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    for index, one in enumerate(whole):
        own = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in own) == one["text"]
        told = [part["logprobs"] for part in own if part["logprobs"]]
        for key in ("tokens", "text_offset"):
            assert [x for part in told for x in part[key]] == one["logprobs"][key]
        # Who shares a batch with a row decides the last digits.
        streamed = [x for part in told for x in part["token_logprobs"]]
        pairs = zip(streamed, one["logprobs"]["token_logprobs"], strict=True)
        assert all(x == y if y is None else x == pytest.approx(y, abs=1e-4) for x, y in pairs)


def test_texts_whose_tokens_cannot_be_shown_are_refused(http, lm):
    answer = http.post(
        "/v1/completions",
        json={"model": "acme-words", "prompt": "long " * 100, "max_tokens": 1, "echo": True, "logprobs": 1},
    )
    assert answer.status_code == 400 and "did not fit" in answer.json()["error"]["message"]
