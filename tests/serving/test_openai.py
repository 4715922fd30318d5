"""The official client works unchanged. python -m pytest tests/serving/test_openai.py"""

import asyncio

import openai
import pytest

from foreword.models.load import load
from foreword.serving.engine import Engine
from foreword.serving.keys import KeyRing
from foreword.serving.protocol import RowRequest, Sampling
from foreword.serving.store import PromptStore
from tests.serving.running import NAMES, ROOM, filled, listening, server


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture(scope="module")
def address(lm, tmp_path_factory):
    root = filled(tmp_path_factory.mktemp("openai") / "store", lm)
    token = KeyRing.open(root).add(["*"], ["*"])
    with server(root, lm) as own, listening(own) as found:
        yield found, token, root


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address[0]}/v1", api_key=address[1], max_retries=0) as made:
        yield made


def wanted(lm, root, name: str, text: str, **more) -> str:
    with Engine(lm, ROOM) as engine:
        sampling = Sampling(**{"max_tokens": 8, "temperature": 0.0, **more})
        return engine.generate(RowRequest(PromptStore.open(root).resolve(name), text), sampling).result.result(60).text


def test_models(client):
    assert [model.id for model in client.models.list()] == [*sorted(NAMES), "foreword-tiny-causal"]
    assert client.models.retrieve("beta").owned_by == "foreword"


def test_completions(client, lm, address):
    found = client.completions.create(model="two", prompt=["a film", "b"], max_tokens=8, temperature=0, logprobs=2)
    assert [c.text for c in found.choices] == [wanted(lm, address[2], "two", text) for text in ("a film", "b")]
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert len(found.choices[0].logprobs.top_logprobs[0]) == 2
    alone = client.completions.create(model="foreword-tiny-causal", prompt="a film", max_tokens=3)
    assert alone.model == "foreword-tiny-causal"


def test_streams(client, lm, address):
    stream = client.completions.create(model="beta", prompt="a film", max_tokens=8, temperature=0, stream=True)
    parts = [part.choices[0] for part in stream]
    assert "".join(part.text for part in parts) == wanted(lm, address[2], "beta", "a film")
    assert parts[-1].finish_reason in ("stop", "length")


def test_chats(client, lm, address):
    messages = [{"role": "user", "content": "a film"}]
    options = {"model": "two", "messages": messages, "max_completion_tokens": 8, "temperature": 0}
    found = client.chat.completions.create(**options, logprobs=True, top_logprobs=1)
    text = wanted(lm, address[2], "two", "a film")
    assert found.choices[0].message.content == text
    assert found.choices[0].logprobs.content[0].top_logprobs
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.total_tokens == found.usage.total_tokens


def test_sampling_is_repeatable(client):
    options = {"model": "two", "prompt": "a", "max_tokens": 12, "seed": 3, "n": 2, "temperature": 1.5}
    one, two = (client.completions.create(**options) for _ in range(2))
    assert [c.text for c in one.choices] == [c.text for c in two.choices]
    assert one.choices[0].text != one.choices[1].text


def test_many_at_once(address, lm):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{address[0]}/v1", api_key=address[1], max_retries=0) as made:
            asked = [(name, f"text {n}") for n in range(8) for name in NAMES]
            calls = [
                made.completions.create(model=name, prompt=text, max_tokens=8, temperature=0) for name, text in asked
            ]
            return asked, [found.choices[0].text for found in await asyncio.gather(*calls)]

    asked, found = asyncio.run(all_of_them())
    assert found[:4] == [wanted(lm, address[2], name, text) for name, text in asked[:4]]
    assert len({*found}) > 8


def test_errors_are_the_client_s_own(client, address):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="none", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="two", prompt="x", temperature=9)
    with (
        openai.OpenAI(base_url=f"{address[0]}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_a_model_with_a_chat_template_talks(tmp_path):
    """Messages of all roles go through the tokenizer's own template."""
    lm = load("foreword-tiny-causal")
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    root = filled(tmp_path / "store", lm)
    with server(root, lm) as own, listening(own) as at, openai.OpenAI(base_url=f"{at}/v1", api_key="-") as made:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        said = made.chat.completions.create(
            model="foreword-tiny-causal", messages=messages, max_tokens=6, temperature=0
        ).choices[0].message.content  # fmt: skip
        text = "<system>be brief\n<user>hello\n<assistant>"
        plain = made.completions.create(model="foreword-tiny-causal", prompt=text, max_tokens=6, temperature=0)
        assert said == plain.choices[0].text
