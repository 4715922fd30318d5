"""What a server under fire may answer: artefacts whose answers are known, and which was valid under a name when."""

import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from foreword.core.artefact import Artefact
from foreword.models.base import FrozenLM
from foreword.serving.archive import pack_archive
from tests.serving.alone import alone_scores, alone_text
from tests.serving.made import artefact

TEXTS = ("a film", "so it is then")
NEW = 8  # pieces of a text
FORMS = ("ahead", "behind", "prefix", "around")
APART, SAME = 0.02, 1e-3  # in log-odds: between two prompts, and between a row alone and in a batch


@dataclass(frozen=True)
class Known:
    """An artefact with its answers, each row alone. Its labels are its own, and its vectors give odds of their own."""

    tenant: str
    upload: bytes
    labels: tuple[str, ...]
    odds: tuple[float, ...]
    texts: tuple[str, ...]


def known(lm: FrozenLM, folder: Path, tenant: str, count: int, seed: int, others: list[Known]) -> list[Known]:
    """So many, no two of which (nor of the others) could be taken for each other."""
    found: list[Known] = []
    while len(found) < count:
        seed += 1
        made = artefact(lm, FORMS[seed % len(FORMS)], 3 + seed % 5, seed)
        odds = tuple(odds_of(*alone_scores(lm, made, text).tolist()) for text in TEXTS)
        texts = tuple(alone_text(lm, made, text, NEW) for text in TEXTS)
        rest = [*others, *found]
        if any(abs(a - b) < APART for one in rest for a, b in zip(odds, one.odds, strict=True)) or any(
            a == b for one in rest for a, b in zip(texts, one.texts, strict=True)
        ):
            continue
        labels = (f"{tenant}{seed}-no", f"{tenant}{seed}-yes")
        named = Artefact.save(replace(made, format=replace(made.format, labels=labels)), folder / f"{tenant}{seed}")
        found.append(Known(tenant, pack_archive(named), labels, odds, texts))
    return found


def odds_of(no: float, yes: float) -> float:
    return math.log(no) - math.log(yes)


class Book:
    """When each artefact was valid under its name; None is when there was none. A change is begun, and then ended.

    An answer has to be of one that was valid at some time while it was asked for.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spans: dict[str, list[list]] = {}

    def begin(self, name: str, new: Known | None) -> None:
        with self.lock:
            self.spans.setdefault(name, [[None, 0.0, math.inf]]).append([new, time.monotonic(), math.inf])

    def end(self, name: str, happened: bool) -> None:
        """The change was made, and what was before it is valid no more; or it was refused."""
        with self.lock:
            now, spans = time.monotonic(), self.spans[name]
            for span in spans[:-1] if happened else spans[-1:]:
                span[2] = min(span[2], now)

    def settle(self, name: str, actual: Known | None) -> None:
        """After changes of which nobody knows whether they were made: which of the two it is. It has to be one."""
        with self.lock:
            now, spans = time.monotonic(), self.spans.setdefault(name, [[None, 0.0, math.inf]])
            live = [span for span in spans if span[2] == math.inf]
            assert any(span[0] is actual for span in live), f"{name} came back as what nobody had made it"
            keep = next(span for span in reversed(live) if span[0] is actual)
            for span in live:
                span[2] = math.inf if span is keep else now

    def current(self, name: str) -> Known | None:
        """Of a name that nobody is changing."""
        with self.lock:
            return next(one for one, _, ended in self.spans.get(name, [[None, 0.0, math.inf]]) if ended == math.inf)

    def valid(self, name: str, since: float, until: float) -> list[Known | None]:
        with self.lock:
            spans = self.spans.get(name, [[None, 0.0, math.inf]])
            return [one for one, begun, ended in spans if begun <= until and ended >= since]
