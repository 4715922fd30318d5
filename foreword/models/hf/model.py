"""Implement what masked, causal and encoder-decoder models of Hugging Face have in common behind the `FrozenLM`
contract."""

import copy
import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import Fingerprint, FrozenLM, Inputs, Kind
from foreword.models.encoding.chat import turn_end
from foreword.models.hf import families, library_generation, prefix_attention, shared_weights, storage
from foreword.models.hf.fused_activations import fuse_activations
from foreword.models.hf.head import OutputHead

CLOSE, CLOSE_HALF = 1e-3, 0.05  # of the largest logit: the same computation, so far apart only by its order
CHUNK = 2**24  # numbers of a (rows, vocabulary) block that exist at once
PROBE = "Ünïcode, CASE  and\tspace: don't 1234 \u4f60\u597d \U0001f600\n"


class HFModel(FrozenLM):
    """Hold a view of a model that shares its tensors, read its output head, and give the fingerprint of the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        kind: Kind,
        name: str,
        backend: prefix_attention.Backend | None = None,
    ):
        """Switch the attention of `model` to the seam; it must be a view (`shared_weights.view_of`), or used by nothing
        else."""
        self.name, self.kind, self.tokenizer = name, kind, tokenizer
        self._backend: prefix_attention.Backend | None = backend
        self.family = model.config.model_type
        self._family = families.family_of(model.config.model_type, kind, name)
        if self._family.seam and model.config._attn_implementation != prefix_attention.NAME:
            model.set_attn_implementation(prefix_attention.NAME)
        fuse_activations(model)
        self._model = model
        self._embedding = model.get_input_embeddings()
        self.device = storage.device_of(self._embedding)  # of a split model: where its embedding runs
        self.dtype = model.dtype
        self._head = OutputHead(model, self.device)
        self._rows = shared_weights.embedding_rows(model)

    @abstractmethod
    def _like(self, model: PreTrainedModel, backend: prefix_attention.Backend | None) -> "HFModel":
        """Return the same kind of reader for a changed view."""

    @property
    @abstractmethod
    def _shape(self) -> dict[str, Any]:
        """Return the model's sizes for its fingerprint."""

    @abstractmethod
    def _two_tokens(self, ids_BS: Int[Tensor, "1 2"]) -> tuple[Inputs, dict[str, Tensor]]:
        """Return a row of two tokens as it is read here, and as the library's own forward pass takes it."""

    @abstractmethod
    def _read(
        self, inputs: Inputs, prefix: PrefixBatch | None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        """Return the hidden states at the positions read, before the output head."""

    @abstractmethod
    def _pooled(self, inputs: Inputs) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        """Return the hidden states that a mean is taken of, and which of them are real."""

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
        self._require_ids(ids_BS, self._rows, "input embedding has vectors")
        return self._embedding(ids_BS.to(self.device))

    def _require_ids(self, ids: Int[Tensor, "..."], rows: int, part: str) -> None:
        """Check that the model has a row for every token. Raises: ModelError for a token without one. Ids on a device
        other than the CPU are not checked: they come from the model itself, or were checked before."""
        if ids.device.type != "cpu" or not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < rows):
            return
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        token = self.tokenizer.convert_ids_to_tokens(wrong) if 0 <= wrong < len(self.tokenizer) else None
        what = f"The token {token!r} of the tokenizer of" if token is not None else "A token given to"
        raise ModelError(
            f"{what} {self.name} has the number {wrong}, and the model's {part} for {rows} tokens: use the tokenizer "
            "that the model was trained with, or lengthen the model (resize_token_embeddings) and train the new rows."
        )

    @cached_property
    def set_aside(self) -> dict[str, Any]:
        return library_generation.set_aside(self._model)

    @cached_property
    def turn_end(self) -> int | None:
        return turn_end(self.tokenizer) if self.instructed else None

    @cached_property
    def stops(self) -> frozenset[int]:
        # A checkpoint often keeps its base model's end, while its chat template ends turns with another.
        turns = frozenset() if self.turn_end is None else frozenset([self.turn_end])
        for source in (getattr(self._model, "generation_config", None), self._model.config, self.tokenizer):
            given = getattr(source, "eos_token_id", None)  # the library's own order: the first that says so
            if given is not None:
                return turns | frozenset(given if isinstance(given, list) else [given])
        separator = self.tokenizer.sep_token_id  # BERT's tokenizers end a text with it and name no other end
        return frozenset() if separator is None else frozenset([separator])

    def piece_logits(self, hidden_XD: Float[Tensor, "X D"], ids_U: Int[Tensor, "U"]) -> Float[Tensor, "X U"]:
        self._require_ids(ids_U, self._head.size, "output head has logits")
        return self._head.pieces(hidden_XD, ids_U, CHUNK)

    def vocabulary_logits(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X V"]:
        return self._head.whole(hidden_XD)

    def log_normaliser(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X"]:
        return self._head.normaliser(hidden_XD, CHUNK)

    @torch.no_grad()
    def require_own_logits(self) -> None:
        """Raise a ModelError if the model's own forward pass gives other logits than are read here, because it does
        more with them than its family does (a scale, an adapter around it)."""
        padding = getattr(self._model.config, "pad_token_id", None)
        ids_BS = torch.tensor([[i for i in range(min(self._rows, 8)) if i != padding][-2:]])
        inputs, keywords = self._two_tokens(ids_BS)
        hidden_SD = self.hidden_at(inputs)[0]
        theirs_SV = self._model(**keywords).logits[0].to(hidden_SD.device).float()
        ours_SV = self.vocabulary_logits(hidden_SD).float()
        close = CLOSE_HALF if self.dtype in (torch.float16, torch.bfloat16) else CLOSE
        if not bool(theirs_SV.isfinite().all()):
            return  # whoever reads them says that another dtype is needed
        same = ours_SV.shape == theirs_SV.shape
        apart = float((ours_SV - theirs_SV).abs().max()) if same else math.inf
        if not apart <= close * max(1.0, float(theirs_SV.abs().max())):
            raise ModelError(
                f"{self.name} does not give the logits of its output head over its last hidden states: its forward "
                f"pass, a {type(self._model).__name__}'s, changes one of them (they differ by {apart:.2g}), as an "
                "adapter or a scale of logits does. Merge what was added into its weights, or use a plain checkpoint "
                "of the family."
            )

    def require_weights(self) -> None:
        storage.require_weights(self._model, self.name)

    def require_gradient(self) -> None:
        if self._cut_by is not None:
            raise ModelError(
                f"{self.name} is quantised ({storage.quantisation_of(self._model)}) in {self._cut_by} layers, which on "
                f"{self.device.type} pass no true gradient to a prompt; train it on the model unquantised or with "
                "--quantise int8, and use it with this one."
            )

    @cached_property
    def _cut_by(self) -> str | None:
        return storage.without_gradient(self._model)

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        shape = {
            "family": self._model.config.model_type,
            "kind": self.kind,
            **self._shape,
            "parameters": storage.plain_shapes(self._model),
        }
        return Fingerprint(
            tokenizer=self._hash_tokenizer(),
            shape=shared_weights.digest(json.dumps(shape, sort_keys=True).encode()),
            weights=self._hash(storage.tensors_of(self._model)),
            dtype=str(self.dtype).removeprefix("torch."),
            quantisation=storage.quantisation_of(self._model),
            kept=self._hash(storage.kept_tensors(self._model)),
        )

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def _hash_tokenizer(self) -> str:
        """Return a hash of the vocabulary and of a probe's ids; the serialised form of one tokenizer differs between
        releases."""
        seen = {"vocab": sorted(self.tokenizer.get_vocab().items()), "probe": self.tokenizer(PROBE)["input_ids"]}
        return shared_weights.digest(json.dumps(seen).encode())

    def _hash(self, tensors: Iterable[tuple[str, Tensor]]) -> str:
        digest = hashlib.sha256()
        for name, tensor in tensors:
            digest.update(name.encode() + storage.sample(tensor))
        return digest.hexdigest()

    def named_weights(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def with_weights(self, weights: Mapping[str, Tensor], dropout: bool = False) -> "HFModel":
        unknown = sorted(weights.keys() - self.named_weights().keys())
        if unknown:
            raise ModelError(f"{self.name} has no weight {unknown[0]}; named_weights() lists the names it has.")
        replaced = shared_weights.view_of(self._model, weights)
        if dropout:
            replaced.train()
        return self._like(replaced, self._backend)

    def adapted(self, change: Callable[[Any], Any]) -> "HFModel":
        return self._like(change(copy.deepcopy(self._model)).eval(), self._backend)

    def checkpointing(self, on: bool) -> "HFModel":
        return self._like(
            shared_weights.recomputing(shared_weights.view_of(self._model, {}), on, self.name), self._backend
        )

    def second_order(self) -> "HFModel":
        return self.with_kernel("eager")

    def with_kernel(self, backend: prefix_attention.Backend | None) -> "HFModel":
        """Return a view that always uses this kernel of attention; with None the seam chooses."""
        return self._like(self._model, backend)
