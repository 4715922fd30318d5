"""Ask an OpenAI-compatible endpoint for texts within a budget of tokens; answers are kept, so none is paid twice."""

import email.utils
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final
from urllib.parse import urlsplit

from foreword.errors import ConfigError, ModelError
from foreword.training.answer_log import key_of
from foreword.training.contract import SearchState

LARGEST_ANSWER = 2**22  # bytes
CHUNK = 2**16
PART = 8  # characters of a key that are a part of it; shorter ones stand in other texts too
PART_OF_ERROR = 4  # in what an endpoint says of a wrong key, of which it may show both ends
MESSAGE_TOKENS = 32  # more than any known endpoint puts around a message
LOCAL = ("localhost", "127.0.0.1", "::1")


class BudgetSpentError(Exception):
    """Say that the next call might cost more tokens than are left."""


@final
@dataclass(frozen=True)
class Endpoint:
    """Describe an endpoint. `url` ends before /chat/completions, or with /completions for models without messages.

    The key is read from the environment variable `key_variable`; if that is not set, no key is sent. The search stops
    after `attempts` failures of one call, or if the endpoint asks for a longer wait than `longest_wait` seconds.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    token_budget: int = 100_000
    timeout: float = 60.0
    attempts: int = 6
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        """Check the options. Raises: ConfigError for a URL or a key that must not be used so."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url={self.url!r} is not an address; write one such as https://api.example.com/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                "The url may hold no user, password, query or fragment, since it is recorded; put the key into the "
                f"environment variable {self.key_variable}."
            )
        if not self.model:
            raise ConfigError("A remote proposer needs the name of its model; give remote_model=NAME.")
        if self.key and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise ConfigError(
                f"The key in {self.key_variable} would go to {parts.hostname} unencrypted; use https, or unset it."
            )
        if self.key and not (self.key.isascii() and self.key.isprintable() and self.key.strip() == self.key):
            raise ConfigError(f"The key in {self.key_variable} holds spaces or unusual characters; set it again.")

    @property
    def key(self) -> str:
        return os.environ.get(self.key_variable, "")

    @property
    def plain(self) -> bool:
        """Return whether the endpoint continues a text instead of answering messages."""
        path = self.url.rstrip("/")
        return path.endswith("/completions") and not path.endswith("/chat/completions")

    @property
    def address(self) -> str:
        path = self.url.rstrip("/")
        return path if path.endswith("/completions") else f"{path}/chat/completions"


@final
class Remote:
    """Call one endpoint. `sleep` waits between attempts."""

    def __init__(self, endpoint: Endpoint, state: SearchState, sleep: Callable[[float], None] = time.sleep) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError("A remote proposer needs httpx; install it with: pip install 'foreword[remote]'.") from (
                error
            )
        self._httpx, self._endpoint, self._state, self._sleep = httpx, endpoint, state, sleep
        self._calls = state.calls

    def write(self, prompt: str, seed: int, *, max_tokens: int, temperature: float, top_p: float) -> str:
        """Return one text for the prompt.

        Raises: BudgetSpentError before a call that might exceed the budget; ModelError if no call succeeds.
        """
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        if self._endpoint.plain:
            body["prompt"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        key = key_of("remote", self._endpoint.address, body)
        result = self._state.get(key)
        if result is None:
            # A piece is at least one byte, so this bounds the prompt for any tokenizer.
            most = len(prompt.encode()) + MESSAGE_TOKENS + max_tokens
            result = self._ask(key, body, most)
        return result

    def _ask(self, key: str, body: dict[str, Any], most: int) -> str:
        wait, failure = 1.0, ""
        for attempt in range(self._endpoint.attempts):
            if attempt:
                self._sleep(wait)
            if self._state.spent + most > self._endpoint.token_budget:
                raise BudgetSpentError
            self._calls += 1
            call = f"{key}/{self._calls}"
            self._state.reserve(call, most)
            wait = min(self._endpoint.longest_wait, 2.0**attempt * (1 + random.Random(call).random()))
            try:
                answer = self._post(body)
            except self._httpx.ConnectError as error:  # it was not heard
                self._state.settle(call, 0)
                failure = f"cannot be reached ({error})"
                continue
            except self._httpx.TransportError as error:  # it may have been carried out: the reservation stays
                failure = f"gave no answer ({type(error).__name__})"
                continue
            if answer.status_code == 200:
                text, tokens = self._read(answer, most)
                self._state.settle(call, tokens, {key: text})
                return text
            if answer.status_code < 500:
                self._state.settle(call, 0)
            failure = f"answered {answer.status_code}{self._reason(answer)}"
            self._stop_at(answer, failure)
            wait = max(wait, self._asked_to_wait(answer))
            if wait > self._endpoint.longest_wait:
                raise ModelError(
                    f"{self._endpoint.address} asks to wait {wait:.0f} seconds; what it answered is kept, so go on "
                    "later with --resume."
                )
        raise ModelError(
            f"{self._endpoint.address} {failure}, {self._endpoint.attempts} times in a row; what it answered before is "
            "kept: go on with --resume."
        )

    def _post(self, body: dict[str, Any]) -> Any:
        """Return the endpoint's answer. Raises: ModelError for one that is compressed, or larger than is allowed."""
        # What is compressed may be a thousand times as large as what was sent.
        headers = {"Accept-Encoding": "identity"}
        if self._endpoint.key:
            headers["Authorization"] = f"Bearer {self._endpoint.key}"
        end, read = time.monotonic() + 2 * self._endpoint.timeout, bytearray()
        with (
            self._httpx.Client(timeout=self._endpoint.timeout, follow_redirects=False) as client,
            client.stream("POST", self._endpoint.address, json=body, headers=headers) as answer,
        ):
            if answer.headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise ModelError(
                    f"{self._endpoint.address} answered in a compressed form that was not asked for; let it, or what "
                    "stands before it, send plain text."
                )
            for chunk in answer.iter_raw(CHUNK):
                read += chunk
                if len(read) > LARGEST_ANSWER:
                    raise ModelError(
                        f"{self._endpoint.address} answered more than the {LARGEST_ANSWER:,} bytes that are read; "
                        "check that url= is right."
                    )
                if time.monotonic() > end:
                    raise self._httpx.ReadTimeout("the answer did not end")
            return self._httpx.Response(answer.status_code, headers=answer.headers, content=bytes(read))

    def _stop_at(self, answer: Any, failure: str) -> None:
        """Raise a ModelError for an answer that would be the same at the next attempt."""
        if answer.status_code in (401, 403):
            told = "is set but was refused" if self._endpoint.key else "is not set"
            raise ModelError(
                f"{self._endpoint.address} {failure}: the key is wrong or missing ({self._endpoint.key_variable} "
                f"{told}); set it and run again."
            )
        if answer.status_code < 500 and answer.status_code not in (408, 409, 425, 429):
            raise ModelError(f"{self._endpoint.address} {failure}; check url= and remote_model=.")

    def _asked_to_wait(self, answer: Any) -> float:
        """Return the seconds of Retry-After, given as a number or a date; 0 if it is neither."""
        given = answer.headers.get("retry-after", "").strip()
        try:
            return max(0.0, float(given))
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
        except (ValueError, TypeError):
            return 0.0

    def _reason(self, answer: Any) -> str:
        """Return the endpoint's error message on one line, cut short and without the key."""
        try:
            error = answer.json()["error"]
            text = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        text = " ".join(without_key(str(text), self._endpoint.key, PART_OF_ERROR).split())[:200].rstrip(".")
        return f" ({text})"

    def _read(self, answer: Any, most: int) -> tuple[str, int]:
        try:
            body = answer.json()
            choice = body["choices"][0]
            text = choice["text"] if self._endpoint.plain else choice["message"]["content"]
            usage = (body.get("usage") or {}).get("total_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise ModelError(
                f"{self._endpoint.address} answered something that is not in OpenAI's form; check that url= is right."
            ) from None
        tokens = usage if isinstance(usage, int) and not isinstance(usage, bool) and usage >= 0 else most
        if not isinstance(text, str):
            return "", tokens
        whole = text.encode("utf-8", "replace").decode()  # half a character, which no tokenizer takes
        return without_key(whole, self._endpoint.key), tokens


def without_key(text: str, key: str, part: int = PART) -> str:
    """Return the text with `...` in place of a key, and of any part of the key with `part` characters or more."""
    part, low = min(part, len(key)), key.lower()
    if part < PART_OF_ERROR:  # a word such as "no", which a server on this machine may ask for
        return text
    text_low = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    parts = {low[at : at + part] for at in range(len(low) - part + 1)}
    out, at = [], 0
    while at < len(text):
        if text_low[at : at + part] not in parts:
            out.append(text[at])
            at += 1
            continue
        end = at + part
        while end < len(text) and text_low[end - part + 1 : end + 1] in parts:
            end += 1
        out.append("...")
        at = end
    return "".join(out)
