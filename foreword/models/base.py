"""Define the frozen model as the rest of Foreword sees it: embed, read hidden states, score pieces, generate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foreword.core.inject import PrefixBatch
from foreword.core.kv_cache import CachedRows, RowCache
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ModelError

Kind = Literal["masked", "causal", "seq2seq"]


@dataclass(frozen=True)
class Dims:
    """Hold the sizes of a model: `width` D, `layers` N, `heads` H (key-value heads), `head_size` K, `vocab` V and
    `context` positions."""

    width: int
    layers: int
    heads: int
    head_size: int
    vocab: int
    context: int


@dataclass(frozen=True)
class Site:
    """Hold the sizes of the prefixes of one attention site: `layers` N, `heads` H and `head_size` K."""

    layers: int
    heads: int
    head_size: int


@dataclass(frozen=True)
class Fingerprint:
    """Describe the model that an artefact was made for: `tokenizer` and `shape` must match and `weights` should; a
    difference in the other fields is reported.

    `shape` is that of the unquantised model. `quantisation` names the library that quantised the weights and its
    method, and is empty for weights that are not quantised. Rounded numbers cannot be compared with their originals, so
    `kept` hashes what quantisation leaves as it is: the input embedding, norms and biases. It tells a fine-tuned model
    from the quantised original, but not one in which matrices alone have changed (merged low-rank updates).
    """

    tokenizer: str
    shape: str
    weights: str
    dtype: str
    quantisation: str = ""
    kept: str = ""


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """Hold what the encoder of an encoder-decoder model reads of each row, padded on the right."""

    embed_BSD: Float[Tensor, "B S D"]
    attend_BS: Bool[Tensor, "B S"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Hold embedded rows for one forward pass.

    `position_BS` counts real tokens from 0 (the model adds the prefix's `start`); at padding it may hold any number.
    `read_BR` names the positions whose hidden states are wanted. `tree_BSS`, if given, further limits which columns
    each position of a row sees (label words appended as a trie); it may be given only if `trie_fits` returns true. The
    rows of an encoder-decoder model are those of its decoder, and `source` holds the encoder's.
    """

    embed_BSD: Float[Tensor, "B S D"]
    attend_BS: Bool[Tensor, "B S"]
    position_BS: Int[Tensor, "B S"]
    read_BR: Int[Tensor, "B R"]
    tree_BSS: Bool[Tensor, "B S S"] | None = None
    source: EncoderSource | None = None


class FrozenLM(ABC):
    """Define a language model that is read but never changed. It is the only owner of dtype and device."""

    name: str
    kind: Kind
    family: str  # transformers' model_type
    dims: Dims
    sites: Mapping[str, Site]  # where a prefix can stand, in the order in which a row passes them
    query_heads: int  # attention heads, which share the `dims.heads` keys and values
    tokenizer: Any  # a Hugging Face fast tokenizer
    device: torch.device
    dtype: torch.dtype

    @property
    def set_aside(self) -> Mapping[str, Any]:
        """Return the settings of the checkpoint's generation_config that would affect decoding and are ignored here, by
        name.

        One rule holds for greedy decoding, samples and beams: the checkpoint decides which ids end a text and which ids
        its decoder begins with, and `Decoding` or a request decides everything else.
        """
        return {}

    @property
    def instructed(self) -> bool:
        """Return whether the model takes messages by default: true for a causal model whose tokenizer has a chat
        template."""
        return self.kind == "causal" and bool(self.tokenizer.chat_template)

    @property
    def turn_end(self) -> int | None:
        """Return the token with which the chat template ends the model's turn; None unless the model is
        `instructed`."""
        return None

    @property
    def takes_prefix(self) -> bool:
        """Return whether `require_prefix` passes."""
        try:
            self.require_prefix()
        except ModelError:
            return False
        return True

    @property
    def writes(self) -> bool:
        """Return whether the model can generate text: masked models cannot."""
        return self.kind != "masked"

    @property
    def batch_tokens(self) -> int:
        """Return how many tokens one pass should have: on a CPU no more than its caches hold (twice as fast), else
        many."""
        return 1024 if self.device.type == "cpu" else 16384

    @abstractmethod
    def embed(self, ids_BS: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """Return the output of the embedding module (Gemma scales inside it)."""

    @abstractmethod
    def hidden_at(
        self, inputs: Inputs, prefix: PrefixBatch | None = None, cached: CachedRows | None = None
    ) -> Float[Tensor, "B R D"]:
        """Return the hidden states at the positions read, after the output head's transform.

        Multiplied by the output rows, plus bias, they are logits (`piece_logits`). `cached` rows continue after the
        columns that their cache holds (a prefix included, except an encoder's); their own keys and values are added to
        the cache, and no gradient flows. Rows without a source have been read by the encoder before.
        """

    @abstractmethod
    def cache(self, rows: int) -> RowCache:
        """Return an empty cache for this number of rows. Raises: ModelError as `require_prefix` does."""

    @property
    @abstractmethod
    def opening(self) -> tuple[int, ...]:
        """Return the ids that a decoder's text begins with; empty unless the model is an encoder-decoder model."""

    @property
    @abstractmethod
    def stops(self) -> frozenset[int]:
        """Return the ids that end a text."""

    @abstractmethod
    def piece_logits(self, hidden_XD: Float[Tensor, "X D"], ids_U: Int[Tensor, "U"]) -> Float[Tensor, "X U"]:
        """Return fp32 (fp64 for an fp64 model) logits of these vocabulary rows only, biases and soft caps included."""

    @abstractmethod
    def vocabulary_logits(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X V"]:
        """Return fp32 (fp64) logits of the whole vocabulary, multiplied in the model's own dtype; for decoding."""

    @abstractmethod
    def log_normaliser(self, hidden_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X"]:
        """Return the log-sum-exp over the whole vocabulary, computed in chunks that never hold (rows, V) of a large
        batch."""

    @abstractmethod
    def features(self, inputs: Inputs, pool: Literal["answer", "mean"]) -> Float[Tensor, "B D"]:
        """Return the last hidden states before the output head: at the first position read, or their mean over real
        tokens."""

    @abstractmethod
    def prefix_from_words(self, ids_P: Int[Tensor, "P"]) -> PrefixPrompt:
        """Return the keys and values that these words have at positions 0..P-1, captured in the attention function.

        They are captured at all sites: in an encoder-decoder model the encoder reads the words, and the decoder reads
        them too, as if they stood at the front of both.
        """

    @abstractmethod
    def prefix_from_embeddings(self, embed_PD: Float[Tensor, "P D"]) -> PrefixPrompt:
        """Return the same prefix as `prefix_from_words` for input embeddings; no gradient flows."""

    @abstractmethod
    def states(
        self, inputs: Inputs, prefix: PrefixBatch | None = None
    ) -> tuple[Float[Tensor, "N B S H K"], Float[Tensor, "N B S H K"]]:
        """Return keys and values of every layer at every column of the rows, differentiable; those at padding must not
        be used. With a prefix, they are those of text that stands after it. Raises: ModelError for an encoder-decoder
        model."""

    @abstractmethod
    def attention(self, inputs: Inputs) -> Float[Tensor, "N B H S"]:
        """Return the weights that the first position read of each row gives to every column, by layer and attention
        head (H here is `query_heads`). Raises: ModelError if the model does not show its attention weights."""

    @abstractmethod
    def require_prefix(self) -> None:
        """Raise a ModelError that names the family if prefixes cannot be given to this model."""

    @abstractmethod
    def require_weights(self) -> None:
        """Raise a ModelError that says why if the model's own weights cannot be trained or added to."""

    @abstractmethod
    def require_gradient(self) -> None:
        """Raise a ModelError that says why if no true gradient reaches a prompt."""

    @abstractmethod
    def trie_fits(self, length: int) -> bool:
        """Return whether a row of this many columns may carry a trie: true if no layer's window is shorter."""

    def begins_alike(self, length: int, whole: int) -> bool:
        """Return whether the first `length` tokens of a row of `whole` tokens have the keys and values that they have
        alone, and in every row of a length in between. False if the model rotates longer rows by other frequencies."""
        return True

    @abstractmethod
    def fingerprint(self) -> Fingerprint: ...

    @abstractmethod
    def named_weights(self) -> dict[str, Tensor]:
        """Return every parameter by name (tied ones once), as stored; for baselines that train the model, and for
        hashes."""

    @abstractmethod
    def with_weights(self, weights: Mapping[str, Tensor], dropout: bool = False) -> "FrozenLM":
        """Return the same model read through other weights (a subset by name), without changing this one;
        differentiable."""

    @abstractmethod
    def adapted(self, change: Callable[[Any], Any]) -> "FrozenLM":
        """Return a model read through a changed deep copy (with layers of another library put in); this model stays as
        it is."""

    @abstractmethod
    def checkpointing(self, on: bool) -> "FrozenLM":
        """Return a view that recomputes each layer in the backward pass if `on`; dropout stays off."""

    @abstractmethod
    def second_order(self) -> "FrozenLM":
        """Return a view whose attention can be differentiated twice, for second-order meta-gradients."""

    @abstractmethod
    def generate(self, inputs: Inputs, prefix: PrefixBatch | None = None, **options: Any) -> Int[Tensor, "X L"]:
        """Return the new token ids after each row, padded on the right; `options` are those of transformers'
        `generate`.

        Masked models cannot generate. `X` is `B`, times `num_return_sequences` if that is given.
        """
