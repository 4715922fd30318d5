"""Hold an ensemble: prompts that answer together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch

from foreword.core.format import Format
from foreword.core.learnt import Learnt, Reader, kind_of, within
from foreword.core.shapes import Float, Tensor
from foreword.core.text import shown
from foreword.errors import ArtefactError

Rule = Literal["mean", "majority"]


@final
@dataclass(frozen=True, eq=False)
class Member:
    """Hold one value of an ensemble, and the format in which its rows are put."""

    value: Learnt
    format: Format


@final
@dataclass(frozen=True, eq=False)
class Ensemble(Learnt, form="ensemble"):
    """Hold prompts that answer together, over the same labels: by the mean of their probabilities, or the majority.

    Their rows share batches (Lester et al. 2021, section 6).
    """

    members: tuple[Member, ...]
    rule: Rule

    @property
    def any_model(self) -> bool:
        return all(member.value.any_model for member in self.members)

    def parts(self, form: Format) -> tuple[tuple[Learnt, Format], ...]:
        return tuple((member.value, member.format) for member in self.members)

    def with_formats(self, convert: Callable[[Format], Format]) -> "Ensemble":
        return replace(self, members=tuple(replace(m, format=convert(m.format)) for m in self.members))

    def combined(self, scores: Sequence[Float[Tensor, "N C"]]) -> Float[Tensor, "N C"]:
        """Return the log of the mean probability; or, for the majority, of the votes. The mean decides between ties."""
        logprob_MNC = torch.stack([score.double().log_softmax(-1) for score in scores])
        mean_NC = logprob_MNC.logsumexp(0) - math.log(len(scores))
        if self.rule == "mean":
            return mean_NC
        vote_NC = torch.nn.functional.one_hot(logprob_MNC.argmax(-1), logprob_MNC.shape[-1]).sum(0)
        total_NC = ((vote_NC + mean_NC.exp()) / (len(scores) + 1)).log()
        return total_NC.masked_fill(mean_NC.isneginf(), -torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, m in enumerate(self.members) for name, t in m.value.tensors().items()}

    def record(self) -> dict[str, Any]:
        parts = [(member.value, member.format.to_json()) for member in self.members]
        members = [{"form": value.form, "format": form, "value": value.record()} for value, form in parts]
        return {"rule": self.rule, "members": members}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        kinds = [(i, kind_of(m["form"]), m["value"]) for i, m in enumerate(record["members"])]
        return {f"{i}.{name}" for i, kind, value in kinds for name in kind.tensor_names(value)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Ensemble":
        members = []
        for number, part in enumerate(record["members"]):
            value = kind_of(part["form"]).restore(within(tensors, f"{number}."), part["value"])
            if value.as_prompt is None or value.changes_weights:
                raise ArtefactError(f"member {number} is of the form {shown(part['form'])}, which no ensemble holds.")
            members.append(Member(value, Format.from_json(part["format"])))
        if len(members) < 2 or record["rule"] not in get_args(Rule):
            raise ArtefactError(f"{len(members)} members with the rule {shown(record['rule'])} are no ensemble.")
        return Ensemble(tuple(members), record["rule"])

    def check_model(self, lm: Reader) -> None:
        for member in self.members:
            member.value.check_model(lm)

    def details(self) -> dict[str, Any]:
        return {"rule": self.rule, "members": [member.format.template.source for member in self.members]}
