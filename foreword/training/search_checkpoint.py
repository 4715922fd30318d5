"""A search's state on disk: one JSON file, written whole after every step, that knows which search it is of."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from foreword.core.files import remove_whole, write_whole
from foreword.errors import ArtefactError
from foreword.training.contract import Job, Notebook, Progress, Step


@final
class FileNotebook(Notebook):
    """`file` may be None: then nothing is kept. `key` is the recipe's hash; another search's file is refused."""

    def __init__(self, file: Path | None, key: str, resume: bool, job: Job, index: int, progress: Progress | None):
        self._file, self._key, self._resume = file, key, resume
        self._job, self._index, self._progress = job, index, progress
        self._began, self._first = time.perf_counter(), 0
        if file is not None and not resume:
            remove_whole(file)

    def kept(self) -> dict[str, Any] | None:
        if self._file is None or not self._resume or not self._file.exists():
            return None
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"The checkpoint {self._file} cannot be read ({error}); start again without it."
            ) from error
        if not isinstance(found, dict) or found.get("key") != self._key:
            raise ArtefactError(
                f"The checkpoint {self._file} is of another run (other rows, options, seed or model); start again with "
                "--overwrite, or name another folder."
            )
        self._first = int(found["state"].get("step", 0))
        return found["state"]

    def keep(self, state: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            write_whole(self._file, json.dumps({"key": self._key, "state": state}).encode())
        except OSError as error:
            raise ArtefactError(
                f"The checkpoint {self._file} could not be written ({error.strerror}); the one before it stays."
            ) from error

    def tell(self, step: int, steps: int, loss: float, rows: int) -> None:
        if self._progress is None:
            return
        took = time.perf_counter() - self._began
        done = max(1, step - self._first)
        left = took / done * (steps - step)
        self._progress(Step(self._index, self._job.name, step, steps, loss, None, rows / max(took, 1e-9), left))

    def remove(self) -> None:
        """The search has ended and its artefact is safe."""
        if self._file is not None:
            remove_whole(self._file)
