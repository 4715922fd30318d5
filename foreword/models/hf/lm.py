"""`HFLM`: a Hugging Face masked or causal language model behind the `FrozenLM` contract."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from foreword.core.inject import PrefixBatch
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import Dims, Fingerprint, FrozenLM, Inputs, Kind
from foreword.models.hf import families, generation, seam, view

CHUNK = 2**24  # numbers of a (rows, vocabulary) block that exist at once
PROBE = "Ünïcode, CASE  and\tspace: don't 1234 \u4f60\u597d \U0001f600\n"
SAMPLE = 2**16  # values of a tensor that its fingerprint reads


@final
class HFLM(FrozenLM):
    """Built by `foreword.load` and `foreword.wrap`; holds a view of the model that shares its tensors."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        kind: Kind,
        name: str,
        *,
        backend: seam.Backend | None = None,
        layers: tuple[str, ...] | None = None,
    ):
        """`model` must be a view (`view.view_of`): its attention is switched to the seam here.

        `layers` names each layer's attention module, where that is known already.
        """
        self.name, self.kind, self.tokenizer = name, kind, tokenizer
        self._backend: seam.Backend | None = backend
        self.family = model.config.model_type
        self._family = families.family_of(model.config.model_type, kind, name)
        if self._family.seam and model.config._attn_implementation != seam.NAME:
            model.set_attn_implementation(seam.NAME)
        self._model = model
        self._base = families.base_of(model)
        self._embedding = model.get_input_embeddings()
        self.device = view.embedding_weight(model).device
        self.dtype = model.dtype
        if layers is None:
            layers = view.attention_names(model, self._base) if self._family.seam else ()
        self._layers = layers
        # Every layer must come to the seam for its masks to hold, and by its own module for a prefix (not ALBERT's).
        self._seamed = len(layers) == model.config.num_hidden_layers
        own = self._seamed and len({*layers}) == len(layers)
        self._layer_of = {id(model.get_submodule(name)): n for n, name in enumerate(layers)} if own else {}
        self._offset = families.offset_of(model, self._family)
        self.dims = self._measure()

    def _measure(self) -> Dims:
        config = self._model.config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        return Dims(
            width=view.embedding_weight(self._model).shape[1],
            layers=int(config.num_hidden_layers),
            heads=heads,
            head_size=size,
            vocab=families.output_of(self._model)[0].shape[0],
            context=families.context_of(self._model, self._family),
        )

    def embed(self, ids_BS: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        return self._embedding(ids_BS.to(self.device))

    def _hidden(self, inputs: Inputs, prefix: PrefixBatch | None, seen: list[Any] | None = None) -> Tensor:
        """(B, S, width) hidden states of the base model, without its output head."""
        if prefix is not None:
            self.require_prefix()
        position_BS = inputs.position_BS if prefix is None else inputs.position_BS + prefix.start_B[:, None]
        padded = not bool(inputs.attend_BS.all())
        if padded:
            position_BS = position_BS.masked_fill(~inputs.attend_BS, 0)
        ahead = 0 if prefix is None else max(prefix.real_BP.shape[1], int(prefix.start_B.max()))
        longest = inputs.attend_BS.shape[1] + ahead
        if longest > self.dims.context:
            self._check_context(position_BS)
        keywords: dict[str, Any] = {} if self.kind == "masked" else {"use_cache": False}
        if not self._seamed:
            attend_BS = inputs.attend_BS.long()
            return self._base(
                inputs_embeds=inputs.embed_BSD, attention_mask=attend_BS, position_ids=position_BS + self._offset
            )[0]
        rows = seam.Rows(inputs.attend_BS if padded else None, position_BS, inputs.tree_BSS, longest)
        # A 4-D mask is passed through by transformers as it is; the seam makes its own from `rows`.
        passed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        told = seam.Seam(self._layer_of, prefix, rows, self._backend, seen)
        return self._base(
            inputs_embeds=inputs.embed_BSD,
            attention_mask=passed,
            position_ids=position_BS + self._offset,
            seam=told,
            **keywords,
        )[0]

    def _check_context(self, position_BS: Int[Tensor, "B S"]) -> None:
        last = int(position_BS.max())
        if last >= self.dims.context:
            raise ModelError(
                f"A row of {last + 1} positions (prompt included) was given to {self.name}, whose context is "
                f"{self.dims.context}: shorten the text or the prompt."
            )

    def hidden_at(self, inputs: Inputs, prefix: PrefixBatch | None = None) -> Float[Tensor, "B R D"]:
        hidden_BSD = self._hidden(inputs, prefix)
        read = inputs.read_BR[..., None].expand(-1, -1, hidden_BSD.shape[-1]).to(hidden_BSD.device)
        return self._family.transform(self._model, hidden_BSD.gather(1, read))

    def piece_logits(self, hidden_XD: Float[Tensor, "X D"], ids_U: Int[Tensor, "U"]) -> Float[Tensor, "X U"]:
        weight_VD, bias_V = families.output_of(self._model)
        ids_U = ids_U.to(weight_VD.device)
        return self._logits(hidden_XD, weight_VD[ids_U], None if bias_V is None else bias_V[ids_U])

    def _logits(self, hidden_XD: Tensor, weight_UD: Tensor, bias_U: Tensor | None) -> Tensor:
        dtype = torch.promote_types(self.dtype, torch.float32)
        logits_XU = nn.functional.linear(
            hidden_XD.to(dtype), weight_UD.to(dtype), None if bias_U is None else bias_U.to(dtype)
        )
        return families.cap(logits_XU, families.softcap_of(self._model))

    def log_normaliser(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X"]:
        weight_VD, bias_V = families.output_of(self._model)

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

    def features(self, inputs: Inputs, pool: Literal["answer", "mean"]) -> Float[Tensor, "B D"]:
        hidden_BSD = self._hidden(inputs, None)
        if pool == "answer":
            row_B = torch.arange(hidden_BSD.shape[0], device=hidden_BSD.device)
            return hidden_BSD[row_B, inputs.read_BR[:, 0]]
        real_BS1 = inputs.attend_BS[..., None].to(hidden_BSD.dtype)
        return (hidden_BSD * real_BS1).sum(1) / real_BS1.sum(1).clamp(min=1)

    @torch.no_grad()
    def prefix_from_words(self, ids_P: Int[Tensor, "P"]) -> PrefixPrompt:
        return self.prefix_from_embeddings(self.embed(ids_P[None])[0])

    @torch.no_grad()
    def prefix_from_embeddings(self, embed_PD: Float[Tensor, "P D"]) -> PrefixPrompt:
        self.require_prefix()
        length = embed_PD.shape[0]
        position_BS = torch.arange(length, device=self.device)[None]
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        attend_BS = torch.ones_like(position_BS, dtype=torch.bool)
        embed_BSD = embed_PD[None].to(self.device, self.dtype)
        self._hidden(Inputs(embed_BSD, attend_BS, position_BS, position_BS[:, :1]), None, seen)
        ordered = sorted(seen, key=lambda call: self._layer_of[id(call[0])])
        keys = torch.stack([key[0].transpose(0, 1) for _, key, _ in ordered])
        values = torch.stack([value[0].transpose(0, 1) for _, _, value in ordered])
        return PrefixPrompt({"self": (keys, values)}, start=length)

    def require_prefix(self) -> None:
        if not self._layer_of:
            raise ModelError(
                f"{self.name} is of the family {self._model.config.model_type}, whose attention cannot be given a "
                "prefix; use prompt-tuning (a soft prompt) with it, or a model of another family."
            )

    def trie_fits(self, length: int) -> bool:
        return self._seamed  # windows are counted in logical positions, so a trie obeys them at any length

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        shape = {
            "family": self._model.config.model_type,
            "kind": self.kind,
            "dims": vars(self.dims),
            "parameters": {name: list(p.shape) for name, p in self.named_weights().items()},
        }
        return Fingerprint(
            tokenizer=self._hash_tokenizer(),
            shape=view.digest(json.dumps(shape, sort_keys=True).encode()),
            weights=self._hash_weights(),
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def _hash_tokenizer(self) -> str:
        """The vocabulary and what becomes of a probe; the serialised form of one tokenizer differs between releases."""
        seen = {"vocab": sorted(self.tokenizer.get_vocab().items()), "probe": self.tokenizer(PROBE)["input_ids"]}
        return view.digest(json.dumps(seen).encode())

    def _hash_weights(self) -> str:
        """Evenly spaced values of every tensor, rounded to bf16 so that a cast to a wider type changes nothing."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.named_weights().items()):
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // SAMPLE)].to(torch.bfloat16).view(torch.int16).cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def named_weights(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def with_weights(self, weights: Mapping[str, Tensor], dropout: bool = False) -> "HFLM":
        unknown = sorted(weights.keys() - self.named_weights().keys())
        if unknown:
            raise ModelError(f"{self.name} has no weight {unknown[0]}; named_weights() lists the names it has.")
        replaced = view.view_of(self._model, weights)
        if dropout:
            replaced.train()
        return self._like(replaced, self._backend)

    def adapted(self, change: Callable[[Any], Any]) -> "HFLM":
        return self._like(change(copy.deepcopy(self._model)).eval(), self._backend)

    def checkpointing(self, on: bool) -> "HFLM":
        return self._like(view.recomputing(view.view_of(self._model, {}), on, self.name), self._backend)

    def second_order(self) -> "HFLM":
        return self.with_kernel("eager")

    def with_kernel(self, backend: seam.Backend | None) -> "HFLM":
        """A view that always attends this way; None lets the seam choose."""
        return self._like(self._model, backend)

    def generate(self, inputs: Inputs, prefix: PrefixBatch | None = None, **options: Any) -> Int[Tensor, "X L"]:
        if self.kind != "causal":
            raise ModelError(
                f"{self.name} is a masked model, which cannot generate; load it with kind causal or choose another."
            )
        if prefix is not None:
            self.require_prefix()
        options = {"pad_token_id": self.tokenizer.pad_token_id, **options}
        told = seam.Seam(self._layer_of, prefix, None, self._backend)
        return generation.generate(self._model, told, inputs, self._offset, options)

    def _like(self, model: PreTrainedModel, backend: seam.Backend | None) -> "HFLM":
        return HFLM(model, self.tokenizer, self.kind, self.name, backend=backend, layers=self._layers)
