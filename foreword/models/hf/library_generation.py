"""Generate with a prefix through transformers' own decoding loops and caches.

Plain `generate` refuses keywords that it does not know, so the seam enters inside a `custom_generate` callable. The
prefix never enters the cache: each step's attention puts it in front, and positions go on after it.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import BaseModelOutput

from foreword.core.inject import PrefixBatch
from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.models.base import Inputs
from foreword.models.hf.last_layer import with_module
from foreword.models.hf.prefix_attention import Opening, Seam

LOOPS = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


# What a checkpoint's generation_config says that holds: the ids a text begins and ends with. The rest of these names
# tell nothing of which tokens come next.
KEPT = frozenset(
    "bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id transformers_version "
    "use_cache cache_implementation cache_config return_dict_in_generate output_attentions output_hidden_states "
    "output_scores output_logits max_length".split()
)


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of the checkpoint's generation_config that would affect decoding and are ignored, without
    those that have their defaults."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    plain = GenerationConfig().to_dict()
    neutral = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "temperature": 1.0, "top_p": 1.0,
               "top_k": 50, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
               "min_length": 0, "early_stopping": False}  # fmt: skip
    results = {
        name: value
        for name, value in config.to_dict().items()
        if name not in KEPT and not name.startswith("_") and value is not None
        and value not in (plain.get(name), neutral.get(name))
    }  # fmt: skip
    return dict(sorted(results.items()))


def plainly(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same model, sharing all of it, with a generation_config that sets nothing (see
    `FrozenLM.set_aside`)."""
    copied = copy.copy(model)
    copied.generation_config = GenerationConfig()
    return copied


def generate(
    model: PreTrainedModel, told: Seam, inputs: Inputs, offset: int, options: dict[str, Any]
) -> Int[Tensor, "X L"]:
    """Return the new ids only. `offset` is what the family adds to positions; rows may be padded on either side.

    `model` comes from `plainly`, so `options` and the library's defaults decide everything.
    """
    inputs = left_padded(inputs)
    rows = inputs.attend_BS.shape[0]
    start_B1 = 0 if told.prefix is None else told.prefix.start_B[:, None]
    position_BS = (inputs.position_BS + start_B1).masked_fill(~inputs.attend_BS, 0) + offset

    def decode(model: PreTrainedModel, input_ids: Tensor, generation_config: Any, **keywords: Any) -> Any:
        times = input_ids.shape[0] // rows
        own = _repeated(told, times)
        keywords["position_ids"] = position_BS.repeat_interleave(times, dim=0)
        loop = getattr(type(model), LOOPS[_offered(generation_config)])
        return loop(model, input_ids, generation_config=generation_config, seam=own, **keywords)

    run: Any = model.generate
    return run(
        inputs_embeds=inputs.embed_BSD,
        attention_mask=inputs.attend_BS.long(),
        custom_generate=decode,
        **options,
    )


class Begun(nn.Module):
    """Take a decoder's place while it generates: its first columns are the embeddings of the seam's `opening`, and its
    text is moved to its position after a prefix or behind padding."""

    def __init__(self, decoder: nn.Module, embedding: nn.Module, layers: int, moved: Callable[..., Tensor]):
        super().__init__()
        self.decoder, self.embedding, self.layers = decoder, embedding, layers
        self._moved = moved

    def __getattr__(self, name: str) -> Any:
        """Return the decoder's own attribute for one that this module lacks, since a model reads some of its
        decoder."""
        own = super().__getattr__
        try:
            return own(name)
        except AttributeError:
            return getattr(own("decoder"), name)

    def forward(self, input_ids: Tensor, past_key_values: Any = None, *, seam: Seam, **keywords: Any) -> Any:
        keywords.pop("inputs_embeds", None)
        opening = seam.opening
        assert opening is not None, "generation tells what the text begins with"
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if past:
            embed_BSD = self.embedding(input_ids)
        else:
            first_BSD = opening.embed_BSD
            embed_BSD = torch.cat([first_BSD, self.embedding(input_ids[:, first_BSD.shape[1] :])], dim=1)
        position_BS = opening.later_B[:, None] + past + torch.arange(embed_BSD.shape[1], device=embed_BSD.device)
        embed_BSD = self._moved(self.decoder, embed_BSD, position_BS, past)
        return self.decoder(inputs_embeds=embed_BSD, past_key_values=past_key_values, seam=seam, **keywords)


def generate_from_source(
    model: PreTrainedModel,
    begun: Begun,
    told: Seam,
    inputs: Inputs,
    source_BJD: Float[Tensor, "B J D"],
    options: dict[str, Any],
) -> Int[Tensor, "X L"]:
    """Return the new ids only, after the columns that the decoder's rows begin with; rows may be padded on either side.

    The checkpoint's settings of decoding are ignored: `options` and the library's defaults decide everything.
    """
    source = inputs.source
    assert source is not None, "rows of an encoder-decoder model have a source"
    padded = not bool(inputs.attend_BS.all())
    inputs = left_padded(inputs)
    rows, first = inputs.attend_BS.shape
    start_B = 0 if told.prefix is None else told.prefix.start_B
    later_B = start_B - (first - inputs.attend_BS.sum(1))
    names = {module: name for name, module in model.named_modules()}
    reading: Any = with_module(model, names[begun.decoder].split("."), begun)
    ends: dict[str, Any] = {name: options.pop(name) for name in ("pad_token_id", "eos_token_id")}
    start = model.config.pad_token_id or 0
    reading.generation_config = GenerationConfig(decoder_start_token_id=start, bos_token_id=start, **ends)
    # The library sizes T5's cache by the encoder's depth, and fails where the decoder is deeper.
    reading.config = copy.deepcopy(model.config)
    reading.config.num_hidden_layers = begun.layers

    def decode(model: PreTrainedModel, input_ids: Tensor, generation_config: Any, **keywords: Any) -> Any:
        times = input_ids.shape[0] // rows
        opening = Opening(inputs.embed_BSD.repeat_interleave(times, 0), later_B.repeat_interleave(times, 0))
        own = replace(_repeated(told, times), opening=opening)
        loop = getattr(type(model), LOOPS[_offered(generation_config)])
        return loop(model, input_ids, generation_config=generation_config, seam=own, **keywords)

    shown = {"decoder_attention_mask": inputs.attend_BS.long()} if padded else {}
    ids_XL = reading.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=source_BJD),
        attention_mask=source.attend_BS.long(),
        decoder_input_ids=torch.full_like(inputs.attend_BS, start, dtype=torch.long),
        custom_generate=decode,
        **shown,
        **options,
    )
    return _ended(ids_XL[:, first:], **ends)


def _ended(ids_XL: Int[Tensor, "X L"], pad_token_id: int | None, eos_token_id: list[int] | None) -> Int[Tensor, "X L"]:
    """Return the ids with padding after each row's end: if the padding token is 0, as T5's is, the library's beams
    repeat the end."""
    if not eos_token_id:
        return ids_XL
    ends_XL = torch.isin(ids_XL, torch.tensor(eos_token_id, device=ids_XL.device))
    after_XL = ends_XL.cumsum(1) - ends_XL.long() > 0
    return ids_XL.masked_fill(after_XL, pad_token_id or 0)


def _offered(config: Any) -> GenerationMode:
    mode = config.get_generation_mode()
    if mode not in LOOPS:
        raise ConfigError(
            f"Generation by {mode.value} is not offered; use greedy decoding, sampling (do_sample) or beams "
            "(num_beams)."
        )
    return mode


def _repeated(told: Seam, times: int) -> Seam:
    """Return the seam for each row's beams or samples, that of cross-attention included."""
    prefix = None if told.prefix is None else repeated(told.prefix, times)
    cross = None if told.cross is None else _repeated(told.cross, times)
    return replace(told, prefix=prefix, cross=cross, masks={})


def left_padded(inputs: Inputs) -> Inputs:
    """Return the same rows with their padding moved to the front, as decoding needs it."""
    if bool(inputs.attend_BS[:, -1].all()):
        return inputs
    order_BS = inputs.attend_BS.to(torch.int8).argsort(dim=1, stable=True)
    return Inputs(
        embed_BSD=inputs.embed_BSD.gather(1, order_BS[..., None].expand_as(inputs.embed_BSD)),
        attend_BS=inputs.attend_BS.gather(1, order_BS),
        position_BS=inputs.position_BS.gather(1, order_BS),
        read_BR=inputs.read_BR,
        source=inputs.source,
    )


def repeated(prefix: PrefixBatch, times: int) -> PrefixBatch:
    """Return each row's prefix once for each of its beams or samples."""
    if times == 1:
        return prefix
    own_B = torch.arange(len(prefix.start_B), device=prefix.start_B.device)
    shared = prefix.which_B is None and prefix.keys_NUHPK.shape[1] == 1
    which_B = own_B if prefix.which_B is None else prefix.which_B
    return replace(
        prefix,
        real_BP=prefix.real_BP.repeat_interleave(times, dim=0),
        start_B=prefix.start_B.repeat_interleave(times, dim=0),
        which_B=None if shared else which_B.repeat_interleave(times, dim=0),
    )
