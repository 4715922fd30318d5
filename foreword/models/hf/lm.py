"""Read a Hugging Face masked or causal language model behind the `FrozenLM` contract (`HFLM`)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, final

import torch
from torch import nn
from transformers import PreTrainedModel

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows, RowCache
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import Dims, Inputs, Kind, Site
from foreword.models.hf import families, library_generation, prefix_attention, rope, shared_weights
from foreword.models.hf.last_layer import reading_last
from foreword.models.hf.masks import PackedRows
from foreword.models.hf.model import HFModel
from foreword.models.hf.unpadded import Packing

FEW = 2  # the last layer answers the positions read alone where at least so many tokens stand beside each of them


@final
class HFLM(HFModel):
    """Read all rows as one row of packed tokens. `foreword.load` and `foreword.wrap` build it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        kind: Kind,
        name: str,
        *,
        backend: prefix_attention.Backend | None = None,
        layers: tuple[str, ...] | None = None,
    ):
        """Switch the attention of `model` to the seam; it must be a view (`shared_weights.view_of`), or used by nothing
        else.

        `layers` names each layer's attention module, if that is known already.
        """
        super().__init__(model, tokenizer, kind, name, backend)
        self._base = families.base_of(model)
        if layers is None:
            layers = shared_weights.attention_names(model, self._base) if self._family.seam else ()
        self._layers = layers
        # Every layer must come to the seam for its masks to hold, and by its own module for a prefix (not ALBERT's).
        self._seamed = len(layers) == model.config.num_hidden_layers
        own = self._seamed and len({*layers}) == len(layers)
        self._layer_of = {id(model.get_submodule(name)): n for n, name in enumerate(layers)} if own else {}
        self._offset = families.offset_of(model, self._family)
        self.dims = self._measure()
        self._rotaries = rope.rotaries_of(model, self._base, self.dims.context, name, self._seamed)
        self.sites = {"self": Site(self.dims.layers, self.dims.heads, self.dims.head_size)}
        self.query_heads = int(model.config.num_attention_heads)

    @property
    def opening(self) -> tuple[int, ...]:
        return ()

    def _two_tokens(self, ids_BS: Int[Tensor, "1 2"]) -> tuple[Inputs, dict[str, Tensor]]:
        ids_BS = ids_BS.to(self.device)
        at_BS = torch.arange(2, device=self.device)[None]
        return Inputs(self.embed(ids_BS), at_BS >= 0, at_BS, at_BS), {"input_ids": ids_BS}

    @property
    def _shape(self) -> dict[str, Any]:
        return {"dims": vars(self.dims)}

    def _measure(self) -> Dims:
        config = self._model.config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        return Dims(
            width=shared_weights.embedding_width(self._embedding),
            layers=int(config.num_hidden_layers),
            heads=heads,
            head_size=size,
            vocab=self._head.size,
            context=families.context_of(self._model, self._family),
        )

    def _placed(self, inputs: Inputs, prefix: PrefixBatch | CachedRows | None) -> PackedRows:
        """Return the rows with their positions after the prefix, or after what the cache has of them.

        Raises: ModelError if they do not fit the context.
        """
        if prefix is not None:
            self.require_prefix()
        position_BS = inputs.position_BS
        if prefix is not None:
            position_BS = position_BS + prefix.start_B.to(position_BS.device)[:, None]
        padded = not bool(inputs.attend_BS.all())
        if padded:
            position_BS = position_BS.masked_fill(~inputs.attend_BS, 0)
        ahead = 0 if prefix is None else int(prefix.start_B.max())
        if isinstance(prefix, PrefixBatch):
            ahead = max(prefix.real_BP.shape[1], ahead)
        longest = inputs.attend_BS.shape[1] + ahead
        if longest > self.dims.context:
            self._check_context(position_BS)
        attend_BS = inputs.attend_BS if padded else None
        return PackedRows(Packing.of(inputs.attend_BS), attend_BS, position_BS, inputs.tree_BSS, longest)

    def _padded(self, inputs: Inputs) -> Float[Tensor, "B S D"]:
        """Return the hidden states of the base model, (B, S, D), of a family whose attention does not come to the
        seam."""
        position_BS = self._placed(inputs, None).position_BS + self._offset
        return self._base(
            inputs_embeds=inputs.embed_BSD, attention_mask=inputs.attend_BS.long(), position_ids=position_BS
        )[0]

    def _packed(
        self, base: nn.Module, inputs: Inputs, told: prefix_attention.Seam, length_B: Sequence[int] | None = None
    ) -> Float[Tensor, "X D"]:
        """Return the hidden states of the base model, without its output head, of the real tokens of all rows, (X, D).

        Rows are rotated as rows of `length_B` tokens are; if it is None, as rows as long as their last positions say.
        """
        assert told.rows is not None, "generation does not come here"
        packing = told.rows.packed
        if self._rotaries:
            lengths = length_B or (told.rows.position_BS.max(1).values + 1).tolist()
            row_X = packing.place_X // told.rows.position_BS.shape[1]
            base = rope.reading(base, self._rotaries, length_B=lengths, row_X=row_X)
        keywords: dict[str, Any] = {} if self.kind == "masked" else {"use_cache": False}
        # A 4-D mask is passed through by transformers as it is; the seam makes its own from `rows`.
        passed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        return base(
            inputs_embeds=packing.pack(inputs.embed_BSD)[None],
            attention_mask=passed,
            position_ids=told.rows.position_BS.flatten()[None, packing.place_X] + self._offset,
            seam=told,
            **keywords,
        )[0][0]

    def _check_context(self, position_BS: Int[Tensor, "B S"]) -> None:
        last = int(position_BS.max())
        if last >= self.dims.context:
            raise ModelError(
                f"A row of {last + 1} positions (prompt included) was given to {self.name}, whose context is "
                f"{self.dims.context}: shorten the text or the prompt."
            )

    def cache(self, rows: int) -> RowCache:
        self.require_prefix()
        return RowCache(self.dims.layers, rows, texts=bool(self._rotaries))

    def begins_alike(self, length: int, whole: int) -> bool:
        return all(rotary.set_of(length) == rotary.set_of(whole) for rotary in self._rotaries)

    def _read_again(self, inputs: Inputs, cached: CachedRows) -> None:
        """Renew what a cache has of the rows that this pass makes so long that they are rotated by other frequencies,
        and note what the pass adds to the text of each."""
        cache = cached.cache
        for index, start in enumerate(cached.start_B.tolist()):
            embed_SD = inputs.embed_BSD[index, inputs.attend_BS[index]]
            whole = start + len(embed_SD)
            before_XD = None if self.begins_alike(start, whole) else cache.text(cached.first + index)
            if before_XD is not None:
                again = cache.again(cached.first + index, len(before_XD))
                position_1S = torch.arange(len(before_XD), device=self.device)[None]
                text = Inputs(before_XD[None], torch.ones_like(position_1S, dtype=torch.bool), position_1S, position_1S)
                told = prefix_attention.Seam(self._layer_of, None, again, self._placed(text, again), self._backend)
                self._packed(self._base, text, told, [whole])
            cache.note(cached.first + index, embed_SD)

    def _read(
        self, inputs: Inputs, prefix: PrefixBatch | None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        """Return the base model's hidden states at the positions read; if these are few, its last layer computes them
        alone."""
        read_BR = inputs.read_BR
        if not self._seamed:
            hidden_BSD = self._padded(inputs)
            at = read_BR[..., None].expand(-1, -1, hidden_BSD.shape[-1])
            return hidden_BSD.gather(1, at.to(hidden_BSD.device))
        assert prefix is None or cached is None, "a cache holds the prefix of its rows"
        if cached is not None and self._rotaries:
            self._read_again(inputs, cached)
        rows = self._placed(inputs, prefix if cached is None else cached)
        read_Y = rows.packed.token_BS.gather(1, read_BR).flatten()
        few = self._reader is not None and FEW * len(read_Y) <= len(rows.packed.place_X)
        if few:
            rows = replace(rows, read_BR=read_BR, read_Y=read_Y)
        told = prefix_attention.Seam(self._layer_of, prefix, cached, rows, self._backend)
        hidden_XD = self._packed(self._reader if few and self._reader is not None else self._base, inputs, told)
        read_YD = hidden_XD[: len(read_Y)] if rows.pruned else hidden_XD[read_Y.to(hidden_XD.device)]
        return read_YD.unflatten(0, read_BR.shape)

    @cached_property
    def _reader(self) -> nn.Module | None:
        """Return the base model with a last layer that computes the positions read alone, or None if layers share
        modules."""
        layers = [*self._layers]
        return reading_last(self._model, self._base, layers[-1]) if self._layer_of else None

    def _pooled(self, inputs: Inputs) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        if not self._seamed:
            return self._padded(inputs), inputs.attend_BS
        rows = self._placed(inputs, None)
        hidden_XD = self._packed(
            self._base, inputs, prefix_attention.Seam(self._layer_of, None, None, rows, self._backend)
        )
        return rows.packed.spread(hidden_XD.to(self.device)), inputs.attend_BS

    @torch.no_grad()
    def prefix_from_embeddings(self, embed_PD: Float[Tensor, "P D"]) -> PrefixPrompt:
        length = embed_PD.shape[0]
        position_BS = torch.arange(length, device=self.device)[None]
        attend_BS = torch.ones_like(position_BS, dtype=torch.bool)
        embed_BSD = embed_PD[None].to(self.device, self.dtype)
        keys, values = self.states(Inputs(embed_BSD, attend_BS, position_BS, position_BS[:, :1]))
        return PrefixPrompt({"self": (keys[:, 0], values[:, 0])}, start=length)

    def states(
        self, inputs: Inputs, prefix: PrefixBatch | None = None
    ) -> tuple[Float[Tensor, "N B S H K"], Float[Tensor, "N B S H K"]]:
        self.require_prefix()
        rows = self._placed(inputs, prefix)
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        told = prefix_attention.Seam(self._layer_of, prefix, None, rows, self._backend, seen, enough=self.dims.layers)
        with suppress(prefix_attention.Enough):
            self._packed(self._base, inputs, told)
        ordered = sorted(seen, key=lambda call: self._layer_of[id(call[0])])
        keys, values = zip(*((key, value) for _, key, value in ordered), strict=True)
        packing = rows.packed

        def spread(states: tuple[Tensor, ...]) -> Tensor:
            return torch.stack([packing.spread(one[0].transpose(0, 1).to(self.device)) for one in states])

        return spread(keys), spread(values)

    @torch.no_grad()
    def attention(self, inputs: Inputs) -> Float[Tensor, "N B H S"]:
        if not self._seamed:
            raise ModelError(
                f"{self.name} is of the family {self.family}, whose attention weights are not seen; use a model of "
                "another family to look at them."
            )
        weights: list[Tensor] = []
        rows = self._placed(inputs, None)
        told = prefix_attention.Seam(self._layer_of, None, None, rows, "eager", weights=weights)
        self._packed(self._base, inputs, told)
        row_B = torch.arange(inputs.read_BR.shape[0])
        read_B = inputs.read_BR[:, 0].cpu()
        return torch.stack([w_BHSS[row_B, :, read_B].float().cpu() for w_BHSS in weights])

    def require_prefix(self) -> None:
        if not self._layer_of:
            raise ModelError(
                f"{self.name} is of the family {self._model.config.model_type}, whose attention cannot be given a "
                "prefix; use prompt-tuning (a soft prompt) with it, or a model of another family."
            )

    def trie_fits(self, length: int) -> bool:
        return self._seamed  # windows are counted in logical positions, so a trie obeys them at any length

    def generate(self, inputs: Inputs, prefix: PrefixBatch | None = None, **options: Any) -> Int[Tensor, "X L"]:
        if self.kind != "causal":
            raise ModelError(
                f"{self.name} is a masked model, which cannot generate; load it with kind causal or choose another."
            )
        if prefix is not None:
            self.require_prefix()
        self._check_length(inputs, prefix, int(options.get("max_new_tokens") or 1))
        own = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": sorted(self.stops) or None}
        options = {**own, **options}
        told = prefix_attention.Seam(self._layer_of, prefix, backend=self._backend)
        names = {module: name for name, module in self._model.named_modules()}
        model = rope.reading(self._decoding, self._rotaries, names[self._base])
        return library_generation.generate(model, told, inputs, self._offset, options)

    def _check_length(self, inputs: Inputs, prefix: PrefixBatch | None, new: int) -> None:
        """Check that no row outgrows its frequencies. Raises: ModelError if the library would continue with keys that
        were rotated by other frequencies."""
        if not self._rotaries:
            return
        length_B = inputs.attend_BS.sum(1).cpu() + (0 if prefix is None else prefix.start_B.cpu())
        for length in length_B.tolist():
            if not self.begins_alike(length, length + new - 1):
                raise ModelError(
                    f"{self.name} rotates long rows by other frequencies than short ones, and a row of {length} tokens "
                    f"with {new} new ones would pass from those to these, which beams and proposals cannot follow: ask "
                    "for fewer new tokens, shorten the text, or decode with one beam."
                )

    @cached_property
    def _decoding(self) -> PreTrainedModel:
        return library_generation.plainly(self._model)

    def _like(self, model: PreTrainedModel, backend: prefix_attention.Backend | None) -> "HFLM":
        return HFLM(model, self.tokenizer, self.kind, self.name, backend=backend, layers=self._layers)
