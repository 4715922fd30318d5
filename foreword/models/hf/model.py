"""What masked, causal and encoder-decoder models of Hugging Face have in common behind the `FrozenLM` contract."""

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from foreword.core.cache import CachedRows
from foreword.core.inject import PrefixBatch
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import Fingerprint, FrozenLM, Inputs, Kind
from foreword.models.chat import turn_end
from foreword.models.hf import families, seam, stored, view
from foreword.models.hf.fused import fuse_activations

CHUNK = 2**24  # numbers of a (rows, vocabulary) block that exist at once
PROBE = "Ünïcode, CASE  and\tspace: don't 1234 \u4f60\u597d \U0001f600\n"


class HFModel(FrozenLM):
    """Holds a view of a model that shares its tensors, reads its output head and tells which model it is."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, kind: Kind, name: str, backend: seam.Backend | None = None
    ):
        """`model` must be a view (`view.view_of`): its attention is switched to the seam here."""
        self.name, self.kind, self.tokenizer = name, kind, tokenizer
        self._backend: seam.Backend | None = backend
        self.family = model.config.model_type
        self._family = families.family_of(model.config.model_type, kind, name)
        if self._family.seam and model.config._attn_implementation != seam.NAME:
            model.set_attn_implementation(seam.NAME)
        fuse_activations(model)
        self._model = model
        self._embedding = model.get_input_embeddings()
        self.device = stored.device_of(self._embedding)  # of a split model: where its embedding runs
        self.dtype = model.dtype

    @abstractmethod
    def _like(self, model: PreTrainedModel, backend: seam.Backend | None) -> "HFModel":
        """The same reading of a changed view."""

    @property
    @abstractmethod
    def _shape(self) -> dict[str, Any]:
        """What its fingerprint says of the model's sizes."""

    @abstractmethod
    def _read(
        self, inputs: Inputs, prefix: PrefixBatch | None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        """Hidden states at the positions read, before the output head."""

    @abstractmethod
    def _pooled(self, inputs: Inputs) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        """The hidden states that a mean is taken of, and which of them are real."""

    def hidden_at(
        self, inputs: Inputs, prefix: PrefixBatch | None = None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        if prefix is not None or cached is not None:
            self.require_prefix()
        return self._family.transform(self._model, self._read(inputs, prefix, cached)).to(self.device)

    def features(self, inputs: Inputs, pool: Literal["answer", "mean"]) -> Float[Tensor, "B D"]:
        if pool == "answer":
            return self._read(replace(inputs, read_BR=inputs.read_BR[:, :1]), None)[:, 0].to(self.device)
        hidden_BSD, real_BS = self._pooled(inputs)
        hidden_BSD = hidden_BSD.to(self.device)
        real_BS1 = real_BS[..., None].to(hidden_BSD.dtype)
        return (hidden_BSD * real_BS1).sum(1) / real_BS1.sum(1).clamp(min=1)

    @torch.no_grad()
    def prefix_from_words(self, ids_P: Int[Tensor, "P"]) -> PrefixPrompt:
        return self.prefix_from_embeddings(self.embed(ids_P[None])[0])

    def embed(self, ids_BS: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        return self._embedding(ids_BS.to(self.device))

    @cached_property
    def stops(self) -> frozenset[int]:
        # A checkpoint often keeps its base model's end, while its chat template ends turns with another.
        turn = turn_end(self.tokenizer) if self.instructed else None
        turns = frozenset() if turn is None else frozenset([turn])
        for source in (getattr(self._model, "generation_config", None), self._model.config, self.tokenizer):
            given = getattr(source, "eos_token_id", None)  # the library's own order: the first that says so
            if given is not None:
                return turns | frozenset(given if isinstance(given, list) else [given])
        separator = self.tokenizer.sep_token_id  # BERT's tokenizers end a text with it and name no other end
        return frozenset() if separator is None else frozenset([separator])

    def piece_logits(self, hidden_XD: Float[Tensor, "X D"], ids_U: Int[Tensor, "U"]) -> Float[Tensor, "X U"]:
        weight_VD, bias_V = families.output_of(self._model)
        ids_U = ids_U.to(weight_VD.device)
        bias_U = None if bias_V is None else bias_V[ids_U.to(bias_V.device)].to(self.device)
        return self._logits(hidden_XD, weight_VD[ids_U].to(self.device), bias_U)

    def vocabulary_logits(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X V"]:
        weight_VD, bias_V = families.output_of(self._model)
        hidden_XD = hidden_XD.to(weight_VD.device, weight_VD.dtype)
        logits_XV = nn.functional.linear(hidden_XD, weight_VD, None if bias_V is None else bias_V.to(weight_VD.device))
        logits_XV = logits_XV.to(self.device, torch.promote_types(self.dtype, torch.float32))
        return families.cap(logits_XV, families.softcap_of(self._model))

    def _logits(self, hidden_XD: Tensor, weight_UD: Tensor, bias_U: Tensor | None) -> Tensor:
        dtype = torch.promote_types(self.dtype, torch.float32)
        logits_XU = nn.functional.linear(
            hidden_XD.to(dtype), weight_UD.to(dtype), None if bias_U is None else bias_U.to(dtype)
        )
        return families.cap(logits_XU, families.softcap_of(self._model))

    def log_normaliser(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X"]:
        weight_VD, bias_V = families.output_of(self._model)
        weight_VD, bias_V = weight_VD.to(self.device), None if bias_V is None else bias_V.to(self.device)

        def normalise(rows_XD: Tensor) -> Tensor:
            return self._logits(rows_XD, weight_VD, bias_V).logsumexp(-1)

        step = max(1, CHUNK // weight_VD.shape[0])
        if hidden_XD.shape[0] <= step:
            return normalise(hidden_XD)
        # Autograd would keep every chunk's logits until the backward pass, so they are computed again there.
        chunks = hidden_XD.split(step)
        if torch.is_grad_enabled() and (hidden_XD.requires_grad or weight_VD.requires_grad):
            return torch.cat([checkpoint(normalise, chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([normalise(chunk) for chunk in chunks])

    def require_weights(self) -> None:
        stored.require_weights(self._model, self.name)

    def require_gradient(self) -> None:
        if self._cut_by is not None:
            raise ModelError(
                f"{self.name} is quantised ({stored.quantisation_of(self._model)}) in {self._cut_by} layers, which on "
                f"{self.device.type} pass no true gradient to a prompt; train it on the model unquantised or with "
                "--quantise int8, and use it with this one."
            )

    @cached_property
    def _cut_by(self) -> str | None:
        return stored.without_gradient(self._model)

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        shape = {
            "family": self._model.config.model_type,
            "kind": self.kind,
            **self._shape,
            "parameters": stored.plain_shapes(self._model),
        }
        return Fingerprint(
            tokenizer=self._hash_tokenizer(),
            shape=view.digest(json.dumps(shape, sort_keys=True).encode()),
            weights=self._hash(stored.tensors_of(self._model)),
            dtype=str(self.dtype).removeprefix("torch."),
            quantisation=stored.quantisation_of(self._model),
            kept=self._hash(stored.kept_tensors(self._model)),
        )

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def _hash_tokenizer(self) -> str:
        """The vocabulary and what becomes of a probe; the serialised form of one tokenizer differs between releases."""
        seen = {"vocab": sorted(self.tokenizer.get_vocab().items()), "probe": self.tokenizer(PROBE)["input_ids"]}
        return view.digest(json.dumps(seen).encode())

    def _hash(self, tensors: Iterable[tuple[str, Tensor]]) -> str:
        digest = hashlib.sha256()
        for name, tensor in tensors:
            digest.update(name.encode() + stored.sample(tensor))
        return digest.hexdigest()

    def named_weights(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def with_weights(self, weights: Mapping[str, Tensor], dropout: bool = False) -> "HFModel":
        unknown = sorted(weights.keys() - self.named_weights().keys())
        if unknown:
            raise ModelError(f"{self.name} has no weight {unknown[0]}; named_weights() lists the names it has.")
        replaced = view.view_of(self._model, weights)
        if dropout:
            replaced.train()
        return self._like(replaced, self._backend)

    def adapted(self, change: Callable[[Any], Any]) -> "HFModel":
        return self._like(change(copy.deepcopy(self._model)).eval(), self._backend)

    def checkpointing(self, on: bool) -> "HFModel":
        return self._like(view.recomputing(view.view_of(self._model, {}), on, self.name), self._backend)

    def second_order(self) -> "HFModel":
        return self.with_kernel("eager")

    def with_kernel(self, backend: seam.Backend | None) -> "HFModel":
        """A view that always attends this way; None lets the seam choose."""
        return self._like(self._model, backend)
