"""Keep the results of a search on disk, line by line, so that a killed search resumes without asking again.

Each line is one JSON object: first the recipe of the search, then results by key. Only the last line can be torn. Once
most lines are replaced by later ones, the file is written again without them.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from foreword.core.files import remove_whole, write_whole
from foreword.errors import ArtefactError
from foreword.training.contract import CALL, Progress, SearchState, Step

SPARE = 2**20  # bytes of replaced lines that a file may hold whatever its size


def key_of(*parts: Any) -> str:
    """Return the name of a question's answer: the hash of everything that decides it."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@final
class AnswerLog(SearchState):
    """Keep results in memory and, if there is a file, on disk before they are used.

    `job` and `name` stand in the progress reports. Without a file nothing survives the process.
    """

    def __init__(
        self, file: Path | None = None, *, job: int = 0, name: str = "", progress: Progress | None = None
    ) -> None:
        self._file, self._job, self._name, self._progress = file, job, name, progress
        self._head: dict[str, Any] = {}
        self._headed = False  # the head is written with the first result, so that no file is left with a head alone
        self._results: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}  # bytes of each result's last line
        self._live = 0  # bytes of all last lines
        self._size = 0  # bytes of the file
        self.begin()

    @staticmethod
    def open(file: Path | None, recipe: str, resume: bool, **reports: Any) -> "AnswerLog":
        """Open the log of the search that `recipe` names; with `resume`, read what is there already.

        `reports` are the arguments of `AnswerLog` for its progress.

        Raises: ArtefactError if the file belongs to another search, or cannot be read or written.
        """
        log = AnswerLog(file, **reports)
        log._head = {"search": recipe}
        if file is None:
            return log
        if not resume:
            remove_whole(file)
        try:
            lines = log._read()
        except OSError as error:
            raise ArtefactError(f"{file} cannot be read ({error.strerror or error}).") from error
        if lines and lines[0].get("search") != recipe:
            raise ArtefactError(
                f"{file} is of another run: it holds another search (other rows, options, seed or model). Start again "
                "without --resume, or name another folder."
            )
        log._headed = bool(lines)
        for line in lines[1:]:
            if "call" in line:  # the tokens of a remote call, as logs had them before calls were results like others
                line = {"key": CALL + line["call"], "answer": line["tokens"]}
            if "key" in line:
                log._take(line["key"], line["answer"], len(_line(line["key"], line["answer"])))
        return log

    def get(self, name: str) -> Any:
        return self._results.get(name)

    def put(self, results: Mapping[str, Any]) -> None:
        if self._file is None or not results:
            self._results.update(results)
            return
        lines = [_line(name, result) for name, result in results.items()]
        for name, line in zip(results, lines, strict=True):
            self._take(name, results[name], len(line))
        self._write(self._file, lines)

    def names(self, prefix: str) -> Sequence[str]:
        return [name for name in self._results if name.startswith(prefix)]

    def begin(self, step: int = 0) -> None:
        self._began, self._first = time.monotonic(), step

    def report(self, step: int, steps: int, loss: float, rows: int) -> None:
        if self._progress is None:
            return
        seconds = max(1e-9, time.monotonic() - self._began)
        left = seconds / max(1, step - self._first) * (steps - step)
        self._progress(Step(self._job, self._name, step, steps, loss, None, rows / seconds, left))

    def remove(self) -> None:
        """Remove the file, once the search has ended and its artefact is safe."""
        if self._file:
            remove_whole(self._file)

    def _take(self, name: str, result: Any, size: int) -> None:
        self._live += size - self._sizes.get(name, 0)
        self._results[name], self._sizes[name] = result, size

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
            lines = [json.loads(line) for line in data[:end].splitlines()]
        except ValueError as error:
            raise ArtefactError(f"{self._file} is damaged ({error}). Start again without --resume.") from error
        if not all(isinstance(line, dict) for line in lines):
            raise ArtefactError(f"{self._file} is not the ledger of a search. Start again without --resume.")
        self._size = end
        return lines

    def _write(self, file: Path, lines: Sequence[bytes]) -> None:
        """Append lines, or write the last result of each name if most of the file is replaced."""
        head = json.dumps(self._head).encode() + b"\n"
        data = b"".join(lines) if self._headed else b"".join([head, *lines])
        try:
            if self._size + len(data) > 2 * self._live + SPARE:
                data = b"".join([head, *(_line(name, result) for name, result in self._results.items())])
                write_whole(file, data)
                self._size = 0
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as error:
            raise ArtefactError(
                f"{file} cannot be written ({error.strerror or error}). Make room and go on with --resume."
            ) from error
        self._headed, self._size = True, self._size + len(data)


def _line(name: str, result: Any) -> bytes:
    return json.dumps({"key": name, "answer": result}).encode() + b"\n"
