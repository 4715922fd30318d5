"""Generation with a prefix, through transformers' own decoding loops and caches.

Plain `generate` refuses keywords that it does not know, so the seam enters inside a `custom_generate` callable. The
prefix never enters the cache: each step's attention puts it in front, and positions go on after it.
"""

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from foreword.core.inject import PrefixBatch
from foreword.core.shapes import Int, Tensor
from foreword.errors import ConfigError
from foreword.models.base import Inputs
from foreword.models.hf.seam import Seam

LOOPS = {
    GenerationMode.GREEDY_SEARCH: "_sample",
    GenerationMode.SAMPLE: "_sample",
    GenerationMode.BEAM_SEARCH: "_beam_search",
    GenerationMode.BEAM_SAMPLE: "_beam_search",
}


def generate(
    model: PreTrainedModel, told: Seam, inputs: Inputs, offset: int, options: dict[str, Any]
) -> Int[Tensor, "X L"]:
    """New ids only. `offset` is what the family adds to positions; rows may be padded on either side."""
    inputs = left_padded(inputs)
    rows = inputs.attend_BS.shape[0]
    start_B1 = 0 if told.prefix is None else told.prefix.start_B[:, None]
    position_BS = (inputs.position_BS + start_B1).masked_fill(~inputs.attend_BS, 0) + offset

    def decode(model: PreTrainedModel, input_ids: Tensor, generation_config: Any, **keywords: Any) -> Any:
        mode = generation_config.get_generation_mode()
        if mode not in LOOPS:
            raise ConfigError(
                f"Generation by {mode.value} is not offered; use greedy decoding, sampling (do_sample) or beams "
                "(num_beams)."
            )
        times = input_ids.shape[0] // rows
        own = replace(told, prefix=None if told.prefix is None else repeated(told.prefix, times), masks={})
        keywords["position_ids"] = position_BS.repeat_interleave(times, dim=0)
        loop = getattr(type(model), LOOPS[mode])
        return loop(model, input_ids, generation_config=generation_config, seam=own, **keywords)

    run: Any = model.generate
    return run(
        inputs_embeds=inputs.embed_BSD,
        attention_mask=inputs.attend_BS.long(),
        custom_generate=decode,
        **options,
    )


def left_padded(inputs: Inputs) -> Inputs:
    """The same rows with their padding moved to the front, as decoding needs it."""
    if bool(inputs.attend_BS[:, -1].all()):
        return inputs
    order_BS = inputs.attend_BS.to(torch.int8).argsort(dim=1, stable=True)
    return Inputs(
        embed_BSD=inputs.embed_BSD.gather(1, order_BS[..., None].expand_as(inputs.embed_BSD)),
        attend_BS=inputs.attend_BS.gather(1, order_BS),
        position_BS=inputs.position_BS.gather(1, order_BS),
        read_BR=inputs.read_BR,
    )


def repeated(prefix: PrefixBatch, times: int) -> PrefixBatch:
    """Each row's prefix once for each of its beams or samples."""
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
