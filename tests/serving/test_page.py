"""The page in a real browser, before a real server. python -m pytest tests/serving/test_page.py"""

import re
from dataclasses import replace

import httpx
import pytest

from foreword.core.format import Format
from foreword.core.template import Template
from foreword.models.load import load
from foreword.serving.archive import pack_archive
from foreword.serving.keys import KeyRing
from tests.serving.browser import CHROMIUM, MISSING, launched
from tests.serving.made import artefact
from tests.serving.running import filled, listening, server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
ALONE = "foreword-tiny-causal"
IMAGE = "<img src=x onerror=hit()>"
SCRIPT = "</textarea><script>window.hit = 1</script>"


@pytest.fixture(scope="module")
def lm():
    return load(ALONE)


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture
def root(tmp_path, lm):
    root = filled(tmp_path / "store", lm)
    pair = Format(Template.parse("{premise} {hypothesis|shorten}{answer}"), ("no", "yes"), (("bad",), ("good",)))
    bare = Format(Template.parse("{text|shorten} {answer}"), (), ())
    odd = Format(Template.parse("{text|shorten}{answer}"), (IMAGE, "b"), (("bad",), ("good",)))
    for name, form, fields in (
        ("pair", pair, ("premise", "hypothesis")), ("open", bare, ("text",)), ("odd", odd, ("text",)),
    ):  # fmt: skip
        replace(artefact(lm, "bare"), format=form, fields=fields).save(root / "artefacts" / name)
    return root


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.failures = []  # what no user may ever meet
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.on("request", lambda request: page.failures.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    page.close()
    assert not page.failures


@pytest.fixture
def opened(page, root, lm):
    with server(root, lm) as own, listening(own) as address:
        page.goto(address)
        yield page, address
        page.goto("about:blank")


def box(page, name: str):
    return page.get_by_role("checkbox", name=re.compile(rf"^{re.escape(name)} ?(v\d+|no prompt)$"))


def pick(page, *names: str) -> None:
    for name in names:
        with page.expect_response(lambda answer: "/v1/prompts/" in answer.url) if name != ALONE else _nothing():
            box(page, name).check()


class _nothing:  # noqa: N801 - what stands beside a function
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def run(page, cards: int) -> list:
    page.get_by_role("button", name="Run").click()
    ended = (
        "n => document.querySelectorAll('.answer').length === n && document.querySelector('#run').innerText === 'Run'"
    )
    page.wait_for_function(ended, arg=cards)
    return page.locator(".answer").all()


def told(card) -> dict[str, str]:
    return dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd.value").all_inner_texts(), strict=True))


def asked(address: str, route: str, token: str = "", **body) -> dict:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{address}/v1/{route}", json=body, headers=headers, timeout=60).json()


def percent(probabilities: dict[str, float]) -> dict[str, str]:
    ranked = sorted(probabilities.items(), key=lambda one: -one[1])
    return {label: f"{100 * value:.1f}%" for label, value in ranked}


def test_labels_of_two_prompts_side_by_side(opened):
    page, address = opened
    pick(page, "beta", "two")
    page.get_by_label("Text", exact=True).fill("a fine film")
    cards = run(page, 2)
    for card, name in zip(cards, ("beta", "two"), strict=True):
        found = asked(address, "classify", model=name, input="a fine film")
        wanted = percent(found["data"][0]["probabilities"])
        assert list(told(card).items()) == list(wanted.items())  # in order, too
        assert card.locator("h3 span").inner_text() == found["model"]
        assert re.fullmatch(r"[\d,]+ ms", card.locator("h3 small").inner_text())
    assert told(cards[0]) != told(cards[1])
    boxes = [card.bounding_box() for card in cards]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_texts_of_two_prompts_and_of_the_model_alone(opened):
    page, address = opened
    pick(page, "beta", "acme-reviews", ALONE)
    page.get_by_label("Text", exact=True).fill("a film")
    page.get_by_text("Continue").click()
    page.get_by_label("Tokens").fill("12")
    # A stream: the page has events before the answer is whole.
    with page.expect_response("**/v1/completions") as answer:
        cards = run(page, 3)
    assert answer.value.headers["content-type"].startswith("text/event-stream")
    for card, name in zip(cards, ("beta", "acme-reviews", ALONE), strict=True):
        wanted = asked(address, "completions", model=name, prompt="a film", max_tokens=12, temperature=0)
        assert wanted["choices"][0]["text"]
        text = wanted["choices"][0]["text"]
        assert card.locator(".text").text_content() == ("a film" + text if name == ALONE else text.lstrip(" "))
        assert re.fullmatch(r"first [\d,]+ ms, all [\d,]+ ms", card.locator("h3 small").inner_text())


def test_stop_keeps_what_there_is(opened):
    page, _ = opened
    pick(page, "beta")
    page.get_by_label("Text", exact=True).fill("a film")
    page.get_by_text("Continue").click()
    page.get_by_label("Tokens").fill("400")
    slow = {"offline": False, "latency": 0, "downloadThroughput": 4000, "uploadThroughput": -1}  # bytes a second
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    page.wait_for_function("() => document.querySelector('.text span')?.textContent.length > 3")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped").wait_for()
    assert len(page.locator(".text").inner_text()) > 3
    assert page.get_by_role("button", name="Run").is_visible()


def test_prompts_of_several_fields_and_without_labels(opened):
    page, address = opened
    pick(page, "beta")
    page.get_by_label("Text", exact=True).fill("it rains")
    pick(page, "pair", "open")
    page.get_by_label("premise").fill("it pours")
    page.get_by_label("hypothesis").fill("it is wet")
    page.get_by_label("Labels to choose from").fill("wet\n dry \n\n")
    cards = run(page, 3)
    pair = {"premise": "it pours", "hypothesis": "it is wet"}
    for card, more in zip(
        cards,
        (
            {"model": "beta", "input": "it rains"}, {"model": "pair", "input": pair},
            {"model": "open", "input": "it rains", "options": ["wet", "dry"]},
        ), strict=True,
    ):  # fmt: skip
        assert told(card) == percent(asked(address, "classify", **more)["data"][0]["probabilities"])
    box(page, "beta").uncheck()
    box(page, "open").uncheck()
    assert page.get_by_label("Text", exact=True).count() == 0
    pick(page, "beta")
    assert page.get_by_label("Text", exact=True).input_value() == "it rains"


def test_prompts_are_added_replaced_and_removed(opened, tmp_path, lm):
    page, address = opened
    files = [tmp_path / "my new.tgz", tmp_path / "other.tgz"]
    for seed, file in enumerate(files):
        file.write_bytes(pack_archive(artefact(lm, "ahead", seed=seed + 40).save(tmp_path / f"made-{seed}")))
    for number, file in enumerate(files, 1):
        page.get_by_text("Add a prompt").click()
        page.get_by_label("The folder of an artefact").set_input_files(file)
        if number == 1:
            assert page.get_by_label("Name;").input_value() == "my-new"
        page.get_by_label("Name;").fill("new")
        page.get_by_role("button", name="Add").click()
        page.get_by_text(f"new@{number} is added.").wait_for()
    pick(page, "new")
    page.get_by_label("Text", exact=True).fill("dull")
    [card] = run(page, 1)
    assert card.locator("h3 span").inner_text() == "new@2"
    wanted = asked(address, "classify", model="new", input="dull")
    assert told(card) == percent(wanted["data"][0]["probabilities"])
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Remove new").click()
    assert box(page, "new").is_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove new").click()
    page.get_by_text("new is removed.").wait_for()
    assert box(page, "new").count() == 0
    assert asked(address, "classify", model="new", input="x")["error"]["code"] == "model_not_found"


def test_errors_are_sentences(opened, tmp_path):
    page, address = opened
    page.get_by_label("Text", exact=True).fill("x")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Choose at least one prompt.").wait_for()
    pick(page, "two", "beta")
    assert page.locator("#status").inner_text() == ""
    httpx.delete(f"{address}/v1/prompts/two").raise_for_status()
    gone, there = run(page, 2)
    assert "'two' does not exist" in gone.inner_text()
    assert told(there)
    assert page.locator("#status").inner_text() == "1 of 2 answered."
    (tmp_path / "junk.zip").write_bytes(b"PK\x03\x04 junk")
    page.get_by_text("Add a prompt").click()
    page.get_by_label("The folder of an artefact").set_input_files(tmp_path / "junk.zip")
    page.get_by_role("button", name="Add").click()
    page.get_by_text("The archive cannot be read").wait_for()
    assert box(page, "junk").count() == 0
    page.get_by_label("Search prompts").fill("nothing-like-it")
    page.get_by_text("No name has that in it.").wait_for()
    page.get_by_label("Search prompts").fill("acme")
    page.wait_for_function("() => document.querySelectorAll('#prompts input').length === 2")


def test_a_server_that_is_gone_is_told(page, root, lm):
    with server(root, lm) as own, listening(own) as address:
        page.goto(address)
        pick(page, "two")
    page.get_by_label("Text", exact=True).fill("x")
    [card] = run(page, 1)
    assert "The server does not answer." in card.inner_text()


def test_a_key_is_asked_for_and_shows_its_own_prompts_alone(page, root, lm):
    ring = KeyRing.open(root)
    token = ring.add(["acme-*"], ["acme-w*"])
    with server(root, lm) as own, listening(own) as address:
        page.goto(address)
        page.get_by_text("A valid key is needed").wait_for()
        assert page.locator("#prompts input").count() == 0
        page.get_by_label("Key", exact=True).fill("fw_wrong_key")
        page.get_by_role("button", name="Use").click()
        page.get_by_text("A valid key is needed").wait_for()
        page.get_by_label("Key", exact=True).fill(token)
        page.get_by_role("button", name="Use").click()
        box(page, "acme-reviews").wait_for()
        assert page.locator("#prompts span").all_inner_texts() == ["acme-reviews", "acme-words"]
        assert page.get_by_role("button", name=re.compile("^Remove ")).count() == 1
        pick(page, "acme-reviews")
        page.get_by_label("Text", exact=True).fill("x")
        [card] = run(page, 1)
        wanted = asked(address, "classify", token, model="acme-reviews", input="x")
        assert told(card) == percent(wanted["data"][0]["probabilities"])
        page.reload()
        box(page, "acme-reviews").wait_for()  # the tab keeps the key, and the page does not show it
        assert page.get_by_label("Key", exact=True).input_value() == ""
        assert token not in page.content()
        page.get_by_role("button", name="Forget").click()
        page.get_by_text("A valid key is needed").wait_for()
        assert page.locator("#prompts input").count() == 0
        page.goto("about:blank")


def test_markup_stays_text(opened):
    page, _ = opened
    pick(page, "odd", ALONE)
    page.get_by_label("Text", exact=True).fill(SCRIPT)
    labels, alone = run(page, 2)
    assert IMAGE in told(labels)
    assert "has no labels" in alone.inner_text()
    page.get_by_text("Continue").click()
    _, alone = run(page, 2)
    assert alone.locator(".given").text_content() == SCRIPT
    page.get_by_label("Search prompts").fill(IMAGE)
    page.get_by_text("No name has that in it.").wait_for()
    assert page.locator("#prompts img, #answers img, #answers script").count() == 0
    assert page.evaluate("typeof window.hit") == "undefined"
    blocked = (
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (error) { return error.name } }"
    )
    assert page.evaluate(blocked) == "TypeError"  # and the policy would stop whoever forgets


def test_a_masked_model_is_not_asked_to_continue(page, tmp_path):
    lm = load("foreword-tiny")
    artefact(lm, "ahead").save(tmp_path / "store" / "reviews")
    with server(tmp_path / "store", lm) as own, listening(own) as address:
        page.goto(address)
        pick(page, "reviews")
        assert page.locator("#prompts span").all_inner_texts() == ["reviews"]
        assert not page.get_by_text("Continue").is_visible()
        page.get_by_label("Text", exact=True).fill("x")
        [card] = run(page, 1)
        assert told(card) == percent(asked(address, "classify", model="reviews", input="x")["data"][0]["probabilities"])
        page.goto("about:blank")


def test_by_keyboard_and_on_a_narrow_screen(opened):
    page, _ = opened
    page.set_viewport_size({"width": 360, "height": 700})
    box(page, ALONE).wait_for()  # the list comes after the page, and Tab goes to what is there
    page.get_by_label("Search prompts").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.keyboard.press("Space")
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type("a film")
    page.keyboard.press("Control+Enter")
    page.locator(".answer").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
