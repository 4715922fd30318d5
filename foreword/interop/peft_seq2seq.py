"""Read and write PEFT's prompts in an encoder-decoder model as PEFT's forward pass uses them.

Of a soft prompt's two halves the encoder gets the first, and nothing reads the second. A prefix stands in the decoder's
self-attention alone, and PEFT cuts it up wrongly: of the 2L blocks in its file (keys and values of L layers, L being
the encoder's depth) layer l gets 4l and 4l + 1, modulo 2L. With L even, half are dead and layers share the rest.
"""

import torch

from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ArtefactError
from foreword.interop.peft_files import Adapter
from foreword.models.base import FrozenLM, Site


def soft_of(adapter: Adapter) -> SoftPrompt:
    """Return the half of a soft prompt that PEFT reads."""
    return SoftPrompt(adapter.prompt_PX[: adapter.length].contiguous())


def both_halves(value: SoftPrompt) -> Float[Tensor, "Q D"]:
    """Return the prompt, and zeros for the half that PEFT does not read."""
    own_PD = value.embed_PD.detach().float().cpu()
    return torch.cat([own_PD, torch.zeros_like(own_PD)])


def prefix_of(adapter: Adapter, lm: FrozenLM) -> PrefixPrompt:
    """Return each decoder layer's keys and values, from the blocks that PEFT gives it.

    Raises: ArtefactError if the sizes are others, or PEFT's forward pass fails.
    """
    depth, own = sizes_of(lm)
    width = own.heads * own.head_size
    said = tuple(adapter.config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim"))
    have = (depth, own.heads, width)
    if adapter.prompt_PX.shape[1] != 2 * depth * width or any(
        s not in (None, h) for s, h in zip(said, have, strict=True)
    ):
        raise ArtefactError(
            f"The adapter has a prefix of {adapter.prompt_PX.shape[1]} numbers a position (layers, heads and width "
            f"{said}); for {lm.name!r} PEFT has {2 * depth * width} {have}: give the model it was made for "
            f"({adapter.base_model!r} by its config)."
        )
    blocks = adapter.prompt_PX.view(len(adapter.prompt_PX), 2 * depth, own.heads, own.head_size)
    keys, values = (
        torch.stack([blocks[:, key + i] for key in (_first(layer, depth) for layer in range(own.layers))])
        for i in (0, 1)
    )
    return PrefixPrompt({"self": (keys.contiguous(), values.contiguous())}, start=len(adapter.prompt_PX))


def flat_prefix(value: PrefixPrompt, lm: FrozenLM) -> Float[Tensor, "P X"]:
    """Return the blocks that PEFT cuts up into this prefix; zeros in those that no layer gets.

    Raises: ArtefactError if there is a prefix at another site, or layers that share one in PEFT differ.
    """
    if {*value.sites} != {"self"}:
        others = ", ".join(site for site in value.sites if site != "self")
        raise ArtefactError(
            f"PEFT gives an encoder-decoder model a prefix in the decoder's self-attention alone, and this one stands "
            f"at {others} too: use it with Foreword, or train one with -o sites=self."
        )
    depth, own = sizes_of(lm)
    pair = torch.stack(value.sites["self"]).detach().float().cpu()
    blocks = torch.zeros(value.length, 2 * depth, own.heads, own.head_size)
    taken: dict[int, int] = {}
    for layer in range(own.layers):
        first = _first(layer, depth)
        twin = taken.setdefault(first, layer)
        if not torch.equal(pair[:, twin], pair[:, layer]):
            raise ArtefactError(
                f"PEFT gives layers {twin} and {layer} of this decoder one prefix, since its encoder has an even "
                f"number of layers ({depth}), and here they have two: no adapter equals it; use it with Foreword."
            )
        blocks[:, first], blocks[:, first + 1] = pair[0, layer], pair[1, layer]
    return blocks.flatten(1)


def sizes_of(lm: FrozenLM) -> tuple[int, Site]:
    """Return the depth that PEFT counts, the encoder's, and the sizes of the decoder's self-attention.

    Raises: ArtefactError if PEFT's forward pass fails: it takes the encoder's sizes for the decoder's.
    """
    encoder, own = lm.sites["encoder"], lm.sites["self"]
    if own.layers > encoder.layers:
        raise ArtefactError(
            f"{lm.name!r} has {encoder.layers} encoder and {own.layers} decoder layers; PEFT's prefix has none for the "
            "last of them, and its forward pass fails. Use the prefix with Foreword, or a soft prompt."
        )
    if own.heads != encoder.heads or own.heads * own.head_size != lm.dims.width:
        raise ArtefactError(
            f"The decoder of {lm.name!r} has {own.heads} heads of {own.head_size}; PEFT's prefix takes the encoder's "
            f"{encoder.heads} heads and the width {lm.dims.width} instead, and its forward pass fails. Use the prefix "
            "with Foreword, or a soft prompt."
        )
    return encoder.layers, own


def unread(adapter: Adapter, lm: FrozenLM) -> str | None:
    """Return a line on the part of an adapter that PEFT itself never reads; None if it reads all."""
    if lm.kind != "seq2seq":
        return None
    if adapter.kind != "PREFIX_TUNING":
        return (
            f"Of the adapter's {len(adapter.prompt_PX)} rows PEFT reads the first {adapter.length}, on the encoder; "
            "the others have no effect and are left out."
        )
    depth, own = sizes_of(lm)
    read = {_first(layer, depth) for layer in range(own.layers)}
    if len(read) == depth:
        return None
    return (
        f"Of the adapter's {depth} layers of keys and values PEFT reads {len(read)}, some in several layers of the "
        "decoder; they are imported as it reads them, and the others have no effect."
    )


def _first(layer: int, depth: int) -> int:
    return 4 * layer % (2 * depth)
