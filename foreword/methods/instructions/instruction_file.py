"""Read instructions that a person gives: a text file with one a line, or a tasks.json with gold ones by task."""

import json
from pathlib import Path

from foreword.errors import ConfigError, DataError


def given_instructions(source: str | None, task: str) -> list[str]:
    """Return the instructions of a file, or none without a file.

    Raises: ConfigError for a file that cannot be read; DataError for one without instructions for this task.
    """
    if source is None:
        return []
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(
            f"instructions={source} cannot be read ({reason}); name a text file with one instruction a line, or a "
            "tasks.json."
        ) from error
    found = _of_task(path, text, task) if path.suffix == ".json" else text.splitlines()
    kept = [" ".join(line.split()) for line in found if line.strip()]
    if not kept:
        raise DataError(f"{source} holds no instructions; write one a line.")
    return kept


def _of_task(path: Path, text: str, task: str) -> list[str]:
    try:
        tasks = json.loads(text)
        entry = tasks[task]
        result = entry["gold_instructions"] if isinstance(entry, dict) else entry
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    except (KeyError, TypeError, IndexError):
        known = ", ".join(tasks) if isinstance(tasks, dict) else "no tasks"
        raise DataError(f"{path} has no gold_instructions for the task {task!r} (it has {known}).") from None
    if not isinstance(result, list) or not all(isinstance(line, str) for line in result):
        raise DataError(f"{path}: the gold_instructions of {task!r} must be a list of texts.")
    return result
