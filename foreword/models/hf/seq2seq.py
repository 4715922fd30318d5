"""Read a Hugging Face encoder-decoder model behind the `FrozenLM` contract (`HFSeq2Seq`).

The encoder reads a row's source once; the decoder reads its own columns, label words included, and attends to the
source. Rows stay padded: T5's bias and BART's positions go by columns, so packed tokens would have those of other
tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn
from transformers import PreTrainedModel

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows, RowCache
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import Dims, EncoderSource, Inputs, Kind, Site
from foreword.models.hf import families, library_generation, prefix_attention, shared_weights
from foreword.models.hf.masks import PackedRows
from foreword.models.hf.model import HFModel
from foreword.models.hf.relative_bias import RelativeBias

PASSED = (1, 1, 1, 1)  # a 4-D mask is passed through by transformers as it is; the seam makes its own


@final
class HFSeq2Seq(HFModel):
    """Read rows with an encoder and a decoder. `foreword.load` and `foreword.wrap` build it; prefixes stand at the
    sites "encoder", "self" and "cross"."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        kind: Kind,
        name: str,
        *,
        backend: prefix_attention.Backend | None = None,
        found: Mapping[str, shared_weights.Attention] | None = None,
    ):
        """Switch the attention of `model` to the seam; it must be a view (`shared_weights.view_of`), or used by nothing
        else.

        `found` holds each site's attention modules, if they are known already.
        """
        super().__init__(model, tokenizer, kind, name, backend)
        self._encoder, self._decoder = model.get_encoder(), model.get_decoder()
        self._found = found or shared_weights.attention_by_site(model, self._encoder, self._decoder)
        self._layer_of = {
            site: {id(model.get_submodule(name)): n for n, name in enumerate(own.names)}
            for site, own in self._found.items()
        }
        self._relative: dict[str, RelativeBias] = {}
        if self._family.relative:
            firsts = {site: self._found[site].names[0] for site in ("encoder", "self")}
            self._relative = {site: RelativeBias(model.get_submodule(name)) for site, name in firsts.items()}
        self.sites = {site: Site(len(a.names), a.heads, a.head_size) for site, a in self._found.items()}
        own = self.sites["self"]
        self.query_heads = own.heads
        self.dims = Dims(
            width=shared_weights.embedding_width(self._embedding),
            layers=own.layers,
            heads=own.heads,
            head_size=own.head_size,
            vocab=self._head.size,
            context=families.source_context_of(model, self._family, tokenizer),
        )
        self._opening = families.opening_of(model, name)

    @property
    def opening(self) -> tuple[int, ...]:
        return self._opening

    def _two_tokens(self, ids_BS: Int[Tensor, "1 2"]) -> tuple[Inputs, dict[str, Tensor]]:
        ids_BS = ids_BS.to(self.device)
        at_BS = torch.arange(2, device=self.device)[None]
        embed_BSD = self.embed(ids_BS)
        inputs = Inputs(embed_BSD, at_BS >= 0, at_BS, at_BS, source=EncoderSource(embed_BSD, at_BS >= 0))
        return inputs, {"input_ids": ids_BS, "decoder_input_ids": ids_BS}

    @property
    def _shape(self) -> dict[str, Any]:
        return {"dims": vars(self.dims), "sites": {site: vars(sizes) for site, sizes in self.sites.items()}}

    def _read(
        self, inputs: Inputs, prefix: PrefixBatch | None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        """Return the decoder's states at the positions read, before the output head."""
        source_BXD = None if inputs.source is None else self._encoded(inputs.source, _at(prefix, "encoder"))
        hidden_BSD = self._decoded(inputs, source_BXD, prefix, cached)
        at = inputs.read_BR[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        return hidden_BSD.gather(1, at.to(hidden_BSD.device))

    def _encoded(
        self,
        source: EncoderSource,
        prefix: PrefixBatch | None,
        seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "B S D"]:
        rows = self._placed(source.attend_BS, _columns(source.attend_BS), prefix)
        told = prefix_attention.Seam(
            self._layer_of["encoder"], prefix, None, rows, self._backend, seen,
            bias=self._bias("encoder", rows.position_BS, prefix),
        )  # fmt: skip
        embed_BSD = self._moved(self._encoder, source.embed_BSD, rows.position_BS)
        return self._encoder(inputs_embeds=embed_BSD, attention_mask=self._passed, seam=told)[0]

    def _decoded(
        self,
        inputs: Inputs,
        source_BXD: Float[Tensor, "B X D"] | None,
        prefix: PrefixBatch | None,
        cached: CachedRows | None = None,
        seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Return the decoder's states at every column. Rows of a cache have their prefixes there, except the
        encoder's."""
        own = None if cached is not None else _at(prefix, "self")
        rows = self._placed(inputs.attend_BS, inputs.position_BS, own if cached is None else cached)
        rows = replace(rows, tree_BSS=inputs.tree_BSS)
        if cached is None:
            assert inputs.source is not None, "rows of an encoder-decoder model have a source"
            read = self._placed(inputs.source.attend_BS, _columns(inputs.source.attend_BS), None)
            cross = prefix_attention.Seam(
                self._layer_of["cross"], _at(prefix, "cross"), None, read, self._backend, seen
            )  # fmt: skip
        else:
            assert cached.source is not None, "the cache is of this model"
            last_B1 = cached.source.last_B[:, None].to(self.device)
            cross = prefix_attention.Seam(
                self._layer_of["cross"], None, cached.source, PackedRows(None, None, last_B1, None, 0), self._backend
            )
        told = prefix_attention.Seam(
            self._layer_of["self"], own, cached, rows, self._backend, seen,
            bias=self._bias("self", rows.position_BS, own, cached), cross=cross,
        )  # fmt: skip
        if source_BXD is None:  # its keys and values are cached; a column tells the decoder that there are some
            source_BXD = inputs.embed_BSD[:, :1]
        return self._decoder(
            inputs_embeds=self._moved(self._decoder, inputs.embed_BSD, rows.position_BS),
            attention_mask=self._passed,
            encoder_hidden_states=source_BXD,
            encoder_attention_mask=self._passed,
            use_cache=False,
            seam=told,
        )[0]

    @property
    def _passed(self) -> Bool[Tensor, "1 1 1 1"]:
        return torch.ones(PASSED, dtype=torch.bool, device=self.device)

    def _placed(
        self, attend_BS: Bool[Tensor, "B S"], position_BS: Int[Tensor, "B S"], ahead: PrefixBatch | CachedRows | None
    ) -> PackedRows:
        """Return the rows with their positions after the prefix, or after what the cache has of them.

        Raises: ModelError if they do not fit the positions that the model has.
        """
        if ahead is not None:
            position_BS = position_BS + ahead.start_B.to(position_BS.device)[:, None]
        last = int(position_BS.masked_fill(~attend_BS, 0).max())
        if not self._family.relative and last >= self.dims.context:
            raise ModelError(
                f"A row of {last + 1} positions (prompt included) was given to {self.name}, whose context is "
                f"{self.dims.context}: shorten the text or the prompt."
            )
        padded = not bool(attend_BS.all())
        return PackedRows(None, attend_BS if padded else None, position_BS, None, last + 1)

    def _bias(
        self, site: str, position_BS: Int[Tensor, "B S"], prefix: PrefixBatch | None, cached: CachedRows | None = None
    ) -> Float[Tensor, "_ heads S X"] | None:
        """Return T5's bias over the columns of the prefix and of the text, or of the cache; one row for all rows if
        their positions are the same, and None for a site without a bias."""
        if site not in self._relative:
            return None
        if bool((position_BS == position_BS[:1]).all()):
            position_BS = position_BS[:1]
        key_BX = position_BS
        if cached is not None:
            key_BX = torch.arange(cached.columns, device=position_BS.device)[None]  # columns are positions there
        elif prefix is not None:
            column_P = torch.arange(prefix.columns, device=position_BS.device)
            key_BX = torch.cat([column_P.expand(position_BS.shape[0], -1), position_BS], dim=1)
        return self._relative[site].between(position_BS, key_BX)

    def _moved(
        self, stack: nn.Module, embed_BSD: Float[Tensor, "B S D"], position_BS: Int[Tensor, "B S"], past: int = 0
    ) -> Float[Tensor, "B S D"]:
        """Return embeddings that are right once BART adds its own positions, which it counts by columns from `past`
        on."""
        if self._family.relative:
            return embed_BSD
        column_S = past + torch.arange(embed_BSD.shape[1], device=position_BS.device)
        if bool((position_BS == column_S).all()):
            return embed_BSD
        table: Any = stack.get_submodule("embed_positions")
        last = len(table.weight) - table.offset - 1
        at_BS = position_BS.clamp(0, last) + table.offset  # padding may stand anywhere
        moved_BSD = table.weight[at_BS] - table.weight[column_S + table.offset]
        return embed_BSD + moved_BSD.to(embed_BSD)

    def cache(self, rows: int) -> RowCache:
        return RowCache(self.sites["self"].layers, rows, RowCache(self.sites["cross"].layers, rows))

    def _pooled(self, inputs: Inputs) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        """Return the states of the encoder over the source, and which of them are real."""
        assert inputs.source is not None, "rows of an encoder-decoder model have a source"
        return self._encoded(inputs.source, None), inputs.source.attend_BS

    @torch.no_grad()
    def prefix_from_embeddings(self, embed_PD: Float[Tensor, "P D"]) -> PrefixPrompt:
        embed_BSD = embed_PD[None].to(self.device, self.dtype)
        attend_BS = torch.ones(1, len(embed_PD), dtype=torch.bool, device=self.device)
        source = EncoderSource(embed_BSD, attend_BS)
        inputs = Inputs(embed_BSD, attend_BS, _columns(attend_BS), attend_BS[:, :1].long() * 0, source=source)
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        self._decoded(inputs, self._encoded(source, None, seen), None, None, seen)
        sites = {}
        for site, layers in self._layer_of.items():
            own = {layers[id(module)]: (key, value) for module, key, value in seen if id(module) in layers}
            keys, values = zip(*(own[layer] for layer in range(len(layers))), strict=True)
            sites[site] = (_stacked(keys), _stacked(values))
        return PrefixPrompt(sites, start=len(embed_PD))

    def states(
        self, inputs: Inputs, prefix: PrefixBatch | None = None
    ) -> tuple[Float[Tensor, "N B S H K"], Float[Tensor, "N B S H K"]]:
        raise ModelError(
            f"{self.name} is an encoder-decoder model, whose rows have no one list of keys and values; read its "
            "prefixes by prefix_from_words."
        )

    def attention(self, inputs: Inputs) -> Float[Tensor, "N B H S"]:
        raise ModelError(
            f"{self.name} is an encoder-decoder model, whose attention weights are not shown; use a masked or a causal "
            "model to look at them."
        )

    def require_prefix(self) -> None:
        """Accept every model: each supported family takes prefixes at its three sites."""

    def trie_fits(self, length: int) -> bool:
        return True  # the bias goes by positions, and no layer has a window

    @torch.no_grad()
    def generate(self, inputs: Inputs, prefix: PrefixBatch | None = None, **options: Any) -> Int[Tensor, "X L"]:
        assert inputs.source is not None, "rows of an encoder-decoder model have a source"
        told = prefix_attention.Seam(
            self._layer_of["self"], _at(prefix, "self"), backend=self._backend, relative=self._relative.get("self"),
            cross=prefix_attention.Seam(self._layer_of["cross"], _at(prefix, "cross"), backend=self._backend),
        )  # fmt: skip
        source_BXD = self._encoded(inputs.source, _at(prefix, "encoder"))
        ends = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": sorted(self.stops) or None}
        begun = library_generation.Begun(self._decoder, self._embedding, self.dims.layers, self._moved)
        return library_generation.generate_from_source(
            self._model, begun, told, inputs, source_BXD, {**ends, **options}
        )

    def _like(self, model: PreTrainedModel, backend: prefix_attention.Backend | None) -> "HFSeq2Seq":
        return HFSeq2Seq(model, self.tokenizer, self.kind, self.name, backend=backend, found=self._found)


def _columns(attend_BS: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Return positions by column, for rows padded on the right."""
    return torch.arange(attend_BS.shape[1], device=attend_BS.device).expand(attend_BS.shape[0], -1)


def _stacked(states: Sequence[Tensor]) -> Float[Tensor, "N P H K"]:
    """Stack the states of one row, given for each layer as (1, H, P, K), and return (N, P, H, K)."""
    return torch.stack([one[0].transpose(0, 1) for one in states])


def _at(prefix: PrefixBatch | None, site: str) -> PrefixBatch | None:
    """Return the prefix of a site, or None if it has no column."""
    own = prefix if prefix is None or site == "self" else prefix.others.get(site)
    return None if own is None or not own.columns else own
