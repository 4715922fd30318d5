"""Hold a prompt with weights of the model that were learnt with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from foreword.core.learnt import Learnt, Reader, kind_of, within
from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.core.shapes import Tensor
from foreword.core.values.weights import Weights
from foreword.errors import ArtefactError


@final
@dataclass(frozen=True, eq=False)
class Tuned(Learnt, form="tuned"):
    """Hold a prompt together with weights of the model that were learnt with it: for a model that is not frozen."""

    changes_weights = True
    prompt: SoftPrompt | PrefixPrompt
    weights: Weights

    @property
    def as_prompt(self) -> SoftPrompt | PrefixPrompt:
        return self.prompt

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"prompt.{name}": tensor for name, tensor in self.prompt.tensors().items()}
        return tensors | {f"model.{name}": tensor for name, tensor in self.weights.by_name.items()}

    def record(self) -> dict[str, Any]:
        return {**self.prompt.record(), "form": self.prompt.form, **self.weights.record()}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        prompt = {f"prompt.{name}" for name in kind_of(record["form"]).tensor_names(record)}
        return prompt | {f"model.{name}" for name in record["names"]}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Tuned":
        prompt = kind_of(record["form"]).restore(within(tensors, "prompt."), record)
        weights = within(tensors, "model.")
        if sorted(weights) != record["names"] or not isinstance(prompt, SoftPrompt | PrefixPrompt):
            raise ArtefactError("the names of the weights, or the prompt beside them, differ from the record's.")
        return Tuned(prompt, Weights(weights))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.weights.by_name

    def check_model(self, lm: Reader) -> None:
        self.prompt.check_model(lm)
        self.weights.check_model(lm)
