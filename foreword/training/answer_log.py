"""What a search has asked and been answered, on disk line by line, so that a killed one goes on without asking again.

One JSON object a line: first what the search is, then answers by key, and reservations of tokens. Only the last line
can be torn.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from foreword.core.files import remove_whole
from foreword.errors import ArtefactError


def key_of(*parts: Any) -> str:
    """A key for a question: the hash of all that decides its answer."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@final
class Ledger:
    """Answers by key, in memory and, where a file is given, on disk before they are used.

    `spent` is what remote calls cost in tokens: what was answered for, and all that was reserved for a call that may
    have been carried out and was never answered.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._head: dict[str, Any] | None = None  # written with the first answer, so that no file is left without one
        self._answers: dict[str, Any] = {}
        self._tokens: dict[str, int] = {}

    @staticmethod
    def open(file: Path | None, recipe: str, resume: bool) -> "Ledger":
        """Ledger of the search that `recipe` names; with `resume` those that are there already.

        Raises: ArtefactError where the file is another search's, or cannot be read or written.
        """
        ledger = Ledger(file)
        if file is None:
            return ledger
        if not resume:
            remove_whole(file)
        try:
            lines = ledger._read()
        except OSError as error:
            raise ArtefactError(f"{file} cannot be read ({error.strerror or error}).") from error
        if lines and lines[0].get("search") != recipe:
            raise ArtefactError(
                f"{file} holds another search (other rows, options, seed or model), so it cannot go on here; start "
                "again without --resume, or name another folder."
            )
        ledger._head = None if lines else {"search": recipe}
        for line in lines[1:]:
            ledger._take(line)
        return ledger

    def get(self, key: str) -> Any:
        """The answer, or None where there is none yet."""
        return self._answers.get(key)

    def put(self, answers: Mapping[str, Any]) -> None:
        """Keep answers, all in one write."""
        if answers:
            self._append([{"key": key, "answer": answer} for key, answer in answers.items()])
            self._answers.update(answers)

    @property
    def spent(self) -> int:
        return sum(self._tokens.values())

    def reserve(self, call: str, tokens: int) -> None:
        """Note, before a call is made, the most that it can cost."""
        self._append([line := {"call": call, "tokens": tokens}])
        self._take(line)

    def settle(self, call: str, tokens: int, answers: Mapping[str, Any] | None = None) -> None:
        """Note what a call cost after all, with its answer in the same write."""
        lines = [{"call": call, "tokens": tokens}, *({"key": k, "answer": a} for k, a in (answers or {}).items())]
        self._append(lines)
        for line in lines:
            self._take(line)

    @property
    def calls(self) -> int:
        """Remote calls that were begun."""
        return len(self._tokens)

    def remove(self) -> None:
        if self._file:
            remove_whole(self._file)

    def _take(self, line: Mapping[str, Any]) -> None:
        if "key" in line:
            self._answers[line["key"]] = line["answer"]
        elif "call" in line:
            self._tokens[line["call"]] = int(line["tokens"])

    def _read(self) -> list[dict[str, Any]]:
        assert self._file is not None, "only called with a file"
        if not self._file.exists():
            return []
        data = self._file.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with self._file.open("r+b") as file:
                file.truncate(end)
        try:
            found = [json.loads(line) for line in data[:end].splitlines()]
        except ValueError as error:
            raise ArtefactError(f"{self._file} is damaged ({error}); start again without --resume.") from error
        if not all(isinstance(line, dict) for line in found):
            raise ArtefactError(f"{self._file} is not the ledger of a search; start again without --resume.")
        return found

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        head = [] if self._head is None else [self._head]
        data = b"".join(json.dumps(line).encode() + b"\n" for line in (*head, *lines))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._head = None
        except OSError as error:
            raise ArtefactError(
                f"{self._file} cannot be written ({error.strerror or error}); make room and go on with --resume."
            ) from error
