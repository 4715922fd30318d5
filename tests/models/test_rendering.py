"""Chat templates: nothing that they read changes by itself. Run: python -m pytest tests/models/test_rendering.py"""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from transformers.utils import chat_template_utils

from foreword import train
from foreword.core.artefact import Artefact
from foreword.core.format import RECORDED_SINCE, ChatOptions, Format
from foreword.core.template import Template
from foreword.errors import ConfigError, ModelError
from foreword.evaluation.compare import compare
from foreword.inference.predictor import Prompted, open_artefact
from foreword.interop.plain_text import export
from foreword.methods.registry import make_job
from foreword.models.compatibility import check
from foreword.models.encoding.chat import thinking
from foreword.models.encoding.chat_template import ChatTemplate, frozen, strftime
from foreword.models.encoding.encoder import Encoder
from foreword.models.load import load
from foreword.tasks.task import Task
from foreword.training.recipe import is_of, recipe_hash
from tests.serving.running import client, server

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}[assistant] "
DATED = "Today Date: {{ strftime_now('%d %b %Y') }}\n" + PLAIN
LLAMA = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n{{- "Today: " + date_string }}\n'
    + PLAIN
)
MACRO = "{% macro head(n) %}{{ strftime_now('%A %d %B')[:n] }} {{ strftime_now('%H:%M') }}{% endmacro %}{{ head(13) }}"
THINKS = PLAIN + ("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
USER = [{"role": "user", "content": "Is this good? {text}"}]
TEXTS = ["a fine film", "dull", "not bad at all"]


class Clock:
    """The library's clock, at a moment of the test's own."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch

    def set(self, *moment):
        shown = datetime(*moment)
        now = type("Frozen", (datetime,), {"now": classmethod(lambda cls, tz=None: shown)})
        self._patch.setattr(chat_template_utils, "datetime", now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def lm():
    return load("foreword-tiny-causal")


def task():
    rows = [{"text": f"{word} {n}", "label": word} for n in range(8) for word in ("good", "bad")]
    return Task(rows, name="words")


def rendered(lm, form):
    return lm.tokenizer.decode(Encoder.build(lm, form).encode({"text": "a fine film"}).ids_S)


@pytest.mark.parametrize("source", [DATED, LLAMA, MACRO + PLAIN], ids=["plain", "llama", "macro"])
@pytest.mark.parametrize("method", ["manual", "prompt-tuning"])
def test_an_artefact_says_the_same_on_another_day(lm, clock, tmp_path, source, method):
    lm.tokenizer.chat_template = source
    clock.set(2031, 3, 4, 23, 58, 59)
    options: dict[str, Any] = {"steps": 2, "length": 2} if method == "prompt-tuning" else {}
    made = train(lm, task(), method, **options)
    on_that_day = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    ).partition("[user]")[0]
    assert "04" in on_that_day
    assert on_that_day in rendered(lm, made.artefact.format)  # what the library writes on the day it was made
    before = [p.probabilities for p in made.predict(TEXTS)]
    made.save(tmp_path / "x")
    clock.set(2031, 3, 5, 0, 1, 0)
    assert on_that_day not in lm.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert [p.probabilities for p in made.predict(TEXTS)] == before
    again = open_artefact(tmp_path / "x", lm)
    assert [p.probabilities for p in again.predict(TEXTS)] == before
    # the control: an artefact of this day reads other rows
    other = train(lm, task(), method, **options)
    assert rendered(lm, other.artefact.format) != rendered(lm, made.artefact.format)
    # what is the same on every day
    assert other.artefact.made_of == made.artefact.made_of
    assert other.artefact.fingerprint == made.artefact.fingerprint
    jobs = [make_job(lm, task(), method, options=options)]
    assert is_of(made.artefact, lm, jobs[0])
    clock.set(2031, 3, 6, 0, 1, 0)
    assert recipe_hash(lm, jobs) == recipe_hash(lm, [make_job(lm, task(), method, options=options)])


def test_a_running_server_goes_on_after_midnight(lm, clock, tmp_path):
    lm.tokenizer.chat_template = DATED
    clock.set(2031, 3, 4, 23, 59)
    train(lm, task(), "prompt-tuning", steps=2, length=2).save(tmp_path / "store" / "artefacts" / "reviews")
    asked = {"model": "reviews", "input": TEXTS}
    said = {
        "model": "foreword-tiny-causal", "messages": [{"role": "user", "content": "a"}], "temperature": 0,
        "max_tokens": 3,
    }  # fmt: skip
    with server(tmp_path / "store", lm) as own, client(own) as web:
        before, talk = web.post("/v1/classify", json=asked), web.post("/v1/chat/completions", json=said)
        assert before.status_code == talk.status_code == 200
        clock.set(2031, 3, 5, 0, 1)
        after = web.post("/v1/classify", json=asked)
        assert after.status_code == 200
        assert _probabilities(after) == _probabilities(before)
        assert web.post("/v1/chat/completions", json=said).status_code == 200
    with server(tmp_path / "store", lm) as own, client(own) as web:
        assert _probabilities(web.post("/v1/classify", json=asked)) == _probabilities(before)


def _probabilities(response: httpx.Response) -> list:
    return [one["probabilities"] for one in response.json()["data"]]


def test_the_moment_is_as_coarse_as_the_template(lm, clock):
    form = Format(Template.parse(USER))
    clock.set(2031, 3, 4, 23, 58, 59)
    for source, moment in ((DATED, "2031-03-04"), (MACRO + PLAIN, "2031-03-04T23:58:59"), (PLAIN, None)):
        lm.tokenizer.chat_template = source
        assert frozen(lm.tokenizer, form).chat_options.clock == moment
        assert frozen(lm.tokenizer, frozen(lm.tokenizer, form)) == frozen(lm.tokenizer, form)


def test_an_artefact_of_before_has_one_day_and_says_so(lm, clock):
    lm.tokenizer.chat_template = DATED
    clock.set(2031, 3, 4)
    made = train(lm, task(), "manual").artefact
    assert check(lm, made) is None
    record = made.format.to_json()
    del record["chat_options"]
    old = replace(made, format=Format.from_json(record))
    line = check(lm, old)
    assert line is not None
    assert RECORDED_SINCE in line
    shown = rendered(lm, old.format)
    assert "01 Dec 2026" in shown
    clock.set(2031, 3, 5)
    assert rendered(lm, old.format) == shown
    lm.tokenizer.chat_template = PLAIN
    assert check(lm, old) is None


def test_every_format_of_the_clock_is_the_librarys():
    moment = datetime(2024, 2, 9, 13, 5, 7)
    forms = "%a %A %b %B %c %d %H %I %j %m %M %p %S %U %w %x %X %y %Y %% %-d %e %D %F %T %R %G-W%V %u %h".split()
    for form in [*forms, "%d %b %Y, %H:%M", "no form", "%B%%B"]:
        assert strftime(moment, form) == moment.strftime(form), form


def test_what_picks_at_random_is_refused(lm):
    for source, what in (("{{ ['a', 'b'] | random }}" + PLAIN, "random"), ("{{ lipsum(1) }}" + PLAIN, "lipsum")):
        lm.tokenizer.chat_template = source
        with pytest.raises(ModelError, match=f"picks at random .`{what}`"):
            Encoder.build(lm, Format(Template.parse(USER)))


def test_variables_are_the_templates_own(lm, tmp_path):
    lm.tokenizer.chat_template = THINKS + "{% for d in documents or [] %}<{{ d.title }}>{% endfor %}"
    options = {"enable_thinking": False, "documents": [{"title": "T'", "text": "x"}]}
    form = task().format("causal", USER, chat_options=options)
    assert rendered(lm, form).endswith("[assistant] <think>\n\n</think>\n\n<T'>")
    made = train(lm, task(), "manual", form=form)
    made.save(tmp_path / "x")
    again = Artefact.load(tmp_path / "x")
    assert again.format.chat_options.variables == options
    assert again.format == made.artefact.format
    assert made.predict(TEXTS) == Prompted(lm, again).predict(TEXTS)
    assert json.loads((tmp_path / "x" / "foreword.json").read_text())["format"]["chat_options"] == {
        "variables": options
    }
    export(again, tmp_path / "text", lm)
    assert json.loads((tmp_path / "text" / "prompt.json").read_text())["chat_options"] == {"variables": options}
    plain = train(lm, task(), "manual", form=task().format("causal", USER))
    assert plain.artefact.made_of != made.artefact.made_of  # a switch, unlike the clock, decides what is made


@pytest.mark.parametrize("name", ["enable_thinkng", "messages", "bos_token", "add_generation_prompt", "tokenize", "d"])
def test_other_variables_are_refused_with_those_that_it_reads(lm, name):
    lm.tokenizer.chat_template = THINKS + "{{ date_string }}{{ tokenize }}{{ bos_token }}{% for d in [] %}{% endfor %}"
    form = task().format("causal", USER, chat_options={name: "x"})
    with pytest.raises(ConfigError, match=f"never reads {name}; .* date_string, enable_thinking"):
        train(lm, task(), "manual", form=form)


def test_options_that_no_template_takes(lm):
    lm.tokenizer.chat_template = PLAIN
    with pytest.raises(ConfigError, match="reads no chat options"):
        Encoder.build(lm, task().format("causal", USER, chat_options={"a": 1}))
    with pytest.raises(ConfigError, match="template of one string"):
        Encoder.build(lm, task().format("causal", "{text}", chat_options={"a": 1}))
    for wrong in ({"a": {1, 2}}, {"a b": 1}, {"a": float("nan")}, {"strftime_now": "soon"}):
        with pytest.raises(ConfigError, match="The chat option"):
            ChatOptions.of(wrong)


def test_the_clock_can_be_set(lm, clock):
    lm.tokenizer.chat_template = DATED
    clock.set(2031, 3, 4)
    form = task().format("causal", USER, chat_options={"strftime_now": "2024-07-26"})
    assert rendered(lm, frozen(lm.tokenizer, form)).startswith("<s>Today Date: 26 Jul 2024\n".removeprefix("<s>"))
    lm.tokenizer.chat_template = PLAIN
    with pytest.raises(ConfigError, match="never reads strftime_now"):
        Encoder.build(lm, form)


@pytest.mark.parametrize(
    ("ending", "options", "told"),
    [
        ("", {}, None),
        ("{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}", {}, "begin to"),
        (
            "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}",
            {"enable_thinking": False},
            None,
        ),
        ("{% if thinking %}<think>{% else %}</think>{% endif %}", {}, None),
        ("{% if thinking %}<think>{% else %}</think>{% endif %}", {"thinking": True}, "inside"),
        ("<think>\n", {}, "inside"),
        ("<|think|>\n", {}, "inside"),
        ("<think>\n\n</think>\n", {}, None),
        ("{{ enable_thinking }}", {"enable_thinking": False}, None),
    ],
)
def test_thinking_is_told(lm, ending, options, told):
    lm.tokenizer.chat_template = PLAIN + ending
    source = [{"role": "user", "content": "Is <think> this good? {text}"}]
    form = task().format("causal", source, chat_options=options)
    line = thinking(lm.tokenizer, form, lm.name)
    assert (line is None) == (told is None), line
    made = train(lm, task(), "manual", form=form).artefact
    assert made.metrics.get("thinking") == line
    if line:
        assert told in line


def test_a_template_that_fails_says_its_own_error(lm):
    for source, why in (
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ):
        lm.tokenizer.chat_template = source
        with pytest.raises(
            ConfigError,
            match=f"(?s)chat template of 'foreword-tiny-causal' refuses messages of the roles user: .*{why}",
        ):
            Encoder.build(lm, Format(Template.parse(USER)))
    lm.tokenizer.chat_template = "{% if %}"
    with pytest.raises(ModelError, match="cannot be read"):
        Encoder.build(lm, Format(Template.parse(USER)))


def test_what_the_template_reads_is_seen():
    class Bare:
        chat_template, name_or_path, special_tokens_map = LLAMA, "bare", {"bos_token": "<s>"}

        def get_chat_template(self, tools=None):
            return LLAMA

    assert ChatTemplate.of(Bare(), ChatOptions()).reads == ("date_string", "strftime_now")


def test_a_comparison_that_goes_on_another_day_keeps_its_clock(lm, clock, tmp_path):
    lm.tokenizer.chat_template = DATED
    data = task().with_(validation=task().train[:4], test=task().train[4:8])
    clock.set(2031, 3, 4)
    compare(lm, data, ["manual"], seeds=[0], out=tmp_path)
    clock.set(2031, 3, 5)
    found = compare(lm, data, ["manual", "few-shot"], seeds=[0], out=tmp_path)
    assert {record.method for record in found.records} == {"manual", "few-shot"}
    assert {record.format["chat_options"]["clock"] for record in found.records} == {"2031-03-04"}
    assert len({record.id for record in found.records}) == len(list(found.records))


def test_the_command_line_gives_records_and_shows_them(tmp_path, capsys):
    """A folder of a model with a chat template, as a hub's; `show`, and the line about thinking, said once."""
    from foreword.cli.main import run

    made = load("foreword-tiny-causal")
    made.tokenizer.chat_template = "{{ strftime_now('%F') }}" + THINKS
    folder = tmp_path / "model"
    made._model.save_pretrained(folder)  # type: ignore[attr-defined]
    made.tokenizer.save_pretrained(folder)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"{w} {n}", "label": w}) + "\n" for n in range(8) for w in "ab"))
    common = ["train", "manual", "--model", str(folder), "--data", str(data)]
    assert run([*common, "--out", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().err.count("lets the model think first") == 1
    options = ["--chat-option", "enable_thinking=false", "--chat-option", "strftime_now=2024-07-26"]
    assert run([*common, "--out", str(tmp_path / "y"), *options]) == 0
    assert "think first" not in capsys.readouterr().err
    assert run(["show", str(tmp_path / "y")]) == 0
    shown = capsys.readouterr().out
    assert "enable_thinking=false" in shown
    assert "2024-07-26" in shown
    assert run([*common, "--out", str(tmp_path / "z"), "--chat-option", "enable_thinkin=false"]) == 2
    assert "reads are enable_thinking, strftime_now" in capsys.readouterr().err
    assert not (tmp_path / "z").exists()
    for wrong in ("enable_thinking", "=1"):
        assert run([*common, "--out", str(tmp_path / "z"), "--chat-option", wrong]) == 2
        assert "is not NAME=VALUE" in capsys.readouterr().err
