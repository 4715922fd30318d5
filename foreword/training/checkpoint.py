"""Keep the state of the gradient loop on disk: one safetensors file, written under another name and renamed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from foreword.core.files import remove_whole, write_whole
from foreword.core.shapes import Tensor
from foreword.errors import ArtefactError, ModelError
from foreword.training.loop import Run

EVERY_STEPS = 25


class Checkpoint:
    """Write and restore the state of all runs of one stack; `key` says which jobs they are."""

    def __init__(self, file: Path, key: str):
        self.file = file
        self.key = key

    def every(self, runs: Sequence[Run]) -> Callable[[int], None]:
        """Return a function that writes the runs after every few steps."""
        # A step over episodes takes long beside what is written.
        interval = 1 if any(run.learner.own is not None for run in runs) else EVERY_STEPS

        def after_step(step: int) -> None:
            if step % interval == 0:
                self.write(runs)

        return after_step

    def write(self, runs: Sequence[Run]) -> None:
        """Write the runs. Raises: ArtefactError if the disk refuses; the earlier checkpoint stays."""
        tensors: dict[str, Tensor] = {}
        record: list[Any] = []
        for number, run in enumerate(runs):
            state = run.state()
            for part in ("leaves", "best_leaves"):
                tensors |= {f"{number}/{part}/{k}": v.detach().cpu().contiguous() for k, v in state[part].items()}
            scalars: dict[str, Any] = {}
            for index, entries in state["optimizer"]["state"].items():
                for name, value in entries.items():
                    if isinstance(value, Tensor):
                        tensors[f"{number}/optimizer/{index}/{name}"] = value.detach().cpu().contiguous()
                    else:
                        scalars[f"{index}/{name}"] = value
            groups = state["optimizer"]["param_groups"]
            error = None if run.error is None else str(run.error)
            record.append({"counters": state["counters"], "groups": groups, "scalars": scalars, "error": error})
        data = save({k: v.clone() for k, v in tensors.items()}, {"key": self.key, "runs": json.dumps(record)})
        try:
            write_whole(self.file, data)
        except OSError as error:
            raise ArtefactError(
                f"The checkpoint {self.file} could not be written ({error.strerror}); the one before it stays."
            ) from error

    def restore(self, runs: Sequence[Run]) -> None:
        """Restore the runs from the file; without a file they start from the beginning.

        Raises: ArtefactError for a damaged file or one of other jobs.
        """
        if not self.file.exists():
            return
        try:
            with safe_open(str(self.file), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtefactError(
                f"The checkpoint {self.file} is damaged ({error}); delete it to start again."
            ) from error
        if metadata.get("key") != self.key:
            raise ArtefactError(
                f"The checkpoint {self.file} is of another job (other data, model, options, seed or template); "
                "use the options of the run that wrote it, or delete it to start again."
            )
        for number, (run, record) in enumerate(zip(runs, json.loads(metadata["runs"]), strict=True)):
            run.restore(_state_of(number, record, tensors))
            run.error = None if record["error"] is None else ModelError(record["error"])

    def remove(self) -> None:
        """Remove the file, once the artefacts are safe."""
        remove_whole(self.file)


def _state_of(number: int, record: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what `Run.state` gave for run `number`, whose tensors are named `number/part/name`."""
    state: dict[str, Any] = {"leaves": {}, "best_leaves": {}, "counters": record["counters"]}
    optimizer: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        owner, part, rest = name.split("/", 2)
        if int(owner) != number:
            continue
        if part == "optimizer":
            index, key = rest.split("/", 1)
            optimizer.setdefault(int(index), {})[key] = tensor
        else:
            state[part][rest] = tensor
    for name, value in record["scalars"].items():
        index, key = name.split("/", 1)
        optimizer.setdefault(int(index), {})[key] = value
    state["optimizer"] = {"state": optimizer, "param_groups": record["groups"]}
    return state
