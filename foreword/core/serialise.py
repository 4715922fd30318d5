"""Values as named tensors with what else their record needs, and back; every size, dtype and number is checked."""

import json
from collections.abc import Mapping
from typing import Any, get_args

import torch

from foreword.core.demos import Example
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.record import are_distinct, are_texts, is_number, is_whole
from foreword.core.shapes import Tensor
from foreword.core.text import shown
from foreword.core.values import (
    FORM,
    Ensemble,
    Learnt,
    LowRank,
    Member,
    Neighbours,
    Probe,
    PromptPool,
    Rule,
    Tuned,
    Weights,
    WordCounts,
)
from foreword.errors import ArtefactError

HEADER = 2**24  # bytes of a tensor file's own record of names and shapes
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SITES = ("self", "encoder", "cross")
POOLS = ("answer", "mean", "head")  # what of a row a probe reads
PLAIN = {  # names of the tensors of the forms that always have the same ones
    "soft": ("embed",), "pool": ("keys", "values"), "probe": ("weight", "bias"),
    "word-counts": ("idf", "weight", "bias"), "neighbours": ("embed",),
}  # fmt: skip


def pack(value: Learnt) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A value as named tensors and what else its record needs."""
    if isinstance(value, HardPrompt):
        return ({"ids": value.ids_P} if value.length else {}), {"length": value.length}
    if isinstance(value, SoftPrompt):
        return {"embed": value.embed_PD}, {"shape": list(value.embed_PD.shape)}
    if isinstance(value, PrefixPrompt):
        tensors = {}
        for site, (keys, values) in value.sites.items():
            tensors |= {f"{site}.keys": keys, f"{site}.values": values}
        return tensors, {"start": value.start, "sites": {site: list(kv[0].shape) for site, kv in value.sites.items()}}
    if isinstance(value, Weights):
        return value.tensors, {"names": sorted(value.tensors)}
    if isinstance(value, PromptPool):
        return {"keys": value.keys_KD, "values": value.values_KPD}, {"shape": list(value.values_KPD.shape)}
    if isinstance(value, Tuned):
        tensors, extra = pack(value.prompt)
        tensors = {f"prompt.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"model.{name}": tensor for name, tensor in value.weights.tensors.items()}
        return tensors, {**extra, "form": FORM[type(value.prompt)], "names": sorted(value.weights.tensors)}
    if isinstance(value, LowRank):
        tensors = {}
        for name, (down, up) in value.factors.items():
            tensors |= {f"{name}.down": down, f"{name}.up": up}
        return tensors, {"scale": value.scale, "transposed": list(value.transposed), "names": sorted(value.factors)}
    if isinstance(value, Probe):
        return {"weight": value.weight_CD, "bias": value.bias_C}, {"pool": value.pool}
    if isinstance(value, Neighbours):
        examples = [{"fields": dict(e.fields), "word": e.word} for e in value.examples]
        told = {"count": value.count, "separator": value.separator, "encoder": value.encoder}
        return {"embed": value.embed_ND}, {"examples": examples, **told}
    if isinstance(value, Ensemble):
        tensors, members = {}, []
        for number, member in enumerate(value.members):
            own, extra = pack(member.value)
            tensors |= {f"{number}.{name}": tensor for name, tensor in own.items()}
            members.append({"form": FORM[type(member.value)], "format": member.format.to_json(), "value": extra})
        return tensors, {"rule": value.rule, "members": members}
    return (
        {"idf": value.idf_V, "weight": value.weight_CV, "bias": value.bias_C},
        {"words": list(value.words)},
    )


def check_header(data: bytes, form: str, extra: Mapping[str, Any]) -> None:
    """Whether a tensor file has the tensors that a value of this form has, and no others, before any is made.

    Raises: ArtefactError that names what does not belong there.
    """
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(HEADER, len(data) - 8):
        raise ArtefactError(f"the tensor file has a header of {size:,} bytes; {HEADER:,} are allowed.")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    wanted = _names(form, extra)
    absent, odd = sorted(wanted - header.keys()), sorted(header.keys() - wanted)
    if absent:
        raise ArtefactError(f"the tensor file has no {absent[0]!r}, which a value of the form {form!r} has.")
    if odd:
        raise ArtefactError(f"the tensor file has {odd[0][:80]!r}, which no value of the form {form!r} has.")


def _names(form: str, extra: Mapping[str, Any]) -> set[str]:
    """The names of the tensors of a value."""
    if form in PLAIN:
        return set(PLAIN[form])
    if form == "hard":
        return {"ids"} if extra["length"] else set()
    if form == "prefix":
        return {f"{site}.{part}" for site in extra["sites"] for part in ("keys", "values")}
    if form == "weights":
        return set(extra["names"])
    if form == "low-rank":
        return {f"{name}.{part}" for name in extra["names"] for part in ("down", "up")}
    if form == "tuned":
        inner = {f"prompt.{name}" for name in _names(extra["form"], extra)}
        return inner | {f"model.{name}" for name in extra["names"]}
    if form == "ensemble":
        return {f"{n}.{name}" for n, m in enumerate(extra["members"]) for name in _names(m["form"], m["value"])}
    raise ArtefactError(f"form {form[:80]!r} is unknown; known are {', '.join(FORM.values())}.")


def unpack(form: str, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Learnt:
    """The value back from its tensors; every size, dtype and number is checked."""
    for name, tensor in tensors.items():
        ids = form == "hard" or (form == "ensemble" and name.endswith(".ids"))
        if tensor.dtype not in ((torch.long,) if ids else FLOATS):
            raise ArtefactError(
                f"tensor {name!r} has dtype {tensor.dtype}; {'int64' if ids else 'a float'} was expected."
            )
        if not ids and not torch.isfinite(tensor).all():
            raise ArtefactError(f"tensor {name!r} holds NaN or infinity.")
        if not ids and tensor.ndim and not tensor.numel():
            raise ArtefactError(f"tensor {name!r} is empty: its shape is {list(tensor.shape)}.")
    if form == "hard":
        ids_P = tensors.get("ids", torch.zeros(0, dtype=torch.long))
        if not is_whole(extra["length"], 0) or ids_P.ndim != 1 or len(ids_P) != extra["length"]:
            raise ArtefactError("tensor 'ids' is not a list of token ids of the recorded length.")
        if len(ids_P) and int(ids_P.min()) < 0:
            raise ArtefactError(f"tensor 'ids' holds the token id {int(ids_P.min())}; none is below 0.")
        return HardPrompt(ids_P)
    if form == "soft":
        if list(tensors["embed"].shape) != extra["shape"]:
            raise ArtefactError(
                f"tensor 'embed' has shape {list(tensors['embed'].shape)}, its record says {shown(extra['shape'])}."
            )
        _check_ranks(tensors, embed=2)
        return SoftPrompt(tensors["embed"])
    if form == "prefix":
        return _unpack_prefix(tensors, extra)
    if form == "weights":
        if sorted(tensors) != extra["names"]:
            raise ArtefactError("the names of the weights differ from the record's.")
        return Weights(tensors)
    if form == "pool":
        keys, values = tensors["keys"], tensors["values"]
        _check_ranks(tensors, keys=2, values=3)
        if list(values.shape) != extra["shape"] or list(keys.shape) != [values.shape[0], values.shape[2]]:
            raise ArtefactError(
                f"the pool has keys {list(keys.shape)} and values {list(values.shape)}, which do not fit."
            )
        return PromptPool(keys, values)
    if form == "tuned":
        return _unpack_tuned(tensors, extra)
    if form == "low-rank":
        return _unpack_low_rank(tensors, extra)
    if form == "probe":
        _check_ranks(tensors, weight=2, bias=1)
        _check_single(tensors)
        if extra["pool"] not in POOLS:
            raise ArtefactError(f"the probe reads {shown(extra['pool'])}; it can read {', '.join(POOLS)}.")
        if len(tensors["weight"]) != len(tensors["bias"]):
            raise ArtefactError("the probe's weights and biases are of different numbers of labels.")
        return Probe(tensors["weight"], tensors["bias"], extra["pool"])
    if form == "word-counts":
        return _unpack_counts(tensors, extra)
    if form == "neighbours":
        return _unpack_neighbours(tensors["embed"], extra)
    if form == "ensemble":
        return _unpack_ensemble(tensors, extra)
    raise ArtefactError(f"form {form[:80]!r} is unknown; known are {', '.join(FORM.values())}.")


def _check_ranks(tensors: Mapping[str, Tensor], **ranks: int) -> None:
    for name, rank in ranks.items():
        if tensors[name].ndim != rank:
            raise ArtefactError(
                f"tensor {name!r} has the shape {list(tensors[name].shape)}; {rank} sizes were expected."
            )


def _check_single(tensors: Mapping[str, Tensor]) -> None:
    """Whether tensors that are not read through the model are in the one precision that they are written in."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ArtefactError(f"tensor {name!r} has dtype {tensor.dtype}; float32 was expected.")


def _unpack_low_rank(tensors: dict[str, Tensor], extra: dict[str, Any]) -> LowRank:
    names, scale, transposed = extra["names"], extra["scale"], extra["transposed"]
    if not are_texts(names) or not are_distinct(names) or not is_number(scale, -1e6, 1e6):
        raise ArtefactError(f"the update has the scale {shown(scale)}, or names that are no texts.")
    if not are_texts(transposed) or not set(transposed) <= set(names):
        raise ArtefactError("the update's transposed weights are not among its names.")
    factors = {}
    for name in names:
        down, up = tensors[f"{name}.down"], tensors[f"{name}.up"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.dtype != up.dtype:
            raise ArtefactError(f"the update of {name!r} has factors {list(down.shape)} and {list(up.shape)}.")
        factors[name] = (down, up)
    return LowRank(factors, float(scale), tuple(transposed))


def _unpack_counts(tensors: dict[str, Tensor], extra: dict[str, Any]) -> WordCounts:
    words, (idf_V, weight_CV, bias_C) = extra["words"], (tensors[name] for name in PLAIN["word-counts"])
    if not are_texts(words) or not are_distinct(words) or len(words) != idf_V.numel():
        raise ArtefactError(f"the record's words are not {idf_V.numel()} different texts, one for each column.")
    _check_ranks(tensors, idf=1, weight=2, bias=1)
    _check_single(tensors)
    if list(weight_CV.shape) != [len(bias_C), len(idf_V)]:
        raise ArtefactError(f"the weights are of shape {list(weight_CV.shape)}, which fits no labels and words.")
    return WordCounts(tuple(words), idf_V, weight_CV, bias_C)


def _unpack_tuned(tensors: dict[str, Tensor], extra: dict[str, Any]) -> Tuned:
    own = {k.removeprefix("prompt."): t for k, t in tensors.items() if k.startswith("prompt.")}
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    prompt = unpack(extra["form"], own, extra)
    if sorted(weights) != extra["names"] or not isinstance(prompt, SoftPrompt | PrefixPrompt):
        raise ArtefactError("the names of the weights, or the prompt beside them, differ from the record's.")
    return Tuned(prompt, Weights(weights))


def _unpack_prefix(tensors: dict[str, Tensor], extra: dict[str, Any]) -> PrefixPrompt:
    sites: dict[str, tuple[Tensor, Tensor]] = {}
    for site, shape in extra["sites"].items():
        if site not in SITES:
            raise ArtefactError(f"the prefix stands at {site[:80]!r}; it can stand at {', '.join(SITES)}.")
        pair = tensors[f"{site}.keys"], tensors[f"{site}.values"]
        if any(list(t.shape) != shape for t in pair):
            raise ArtefactError(
                f"the prefix of site {site!r} has shape {list(pair[0].shape)}, its record says {shown(shape)}."
            )
        if pair[0].ndim != 4 or pair[0].dtype != pair[1].dtype:
            raise ArtefactError(f"the prefix of site {site!r} has shape {shown(shape)}; 4 sizes were expected.")
        sites[site] = pair
    if len({pair[0].shape[1] for pair in sites.values()}) != 1:
        raise ArtefactError("the prefix has no site, or sites of different lengths.")
    if not is_whole(extra["start"], 0, 2**31):
        raise ArtefactError(f"start is {shown(extra['start'])}; it must be a whole number, 0 or more.")
    return PrefixPrompt(sites, extra["start"])


def _unpack_neighbours(embed_ND: Tensor, extra: dict[str, Any]) -> Neighbours:
    told, encoder = extra["examples"], extra["encoder"]
    fields = [e["fields"] for e in told]
    texts = [text for e in told for text in (*e["fields"].values(), e["word"])]
    if not all(isinstance(text, str) for text in [*texts, extra["separator"]]) or not isinstance(encoder, str | None):
        raise ArtefactError("the examples' texts, the separator and the encoder's name must be texts.")
    if (
        embed_ND.ndim != 2
        or len(told) != len(embed_ND)
        or not told
        or any(f.keys() != fields[0].keys() for f in fields)
    ):
        raise ArtefactError(f"{len(told)} examples are recorded for embeddings of shape {list(embed_ND.shape)}.")
    if not is_whole(extra["count"], 1):
        raise ArtefactError(f"each row is shown {shown(extra['count'])} examples; it must be 1 or more.")
    examples = tuple(Example(dict(e["fields"]), e["word"]) for e in told)
    return Neighbours(examples, embed_ND, extra["count"], extra["separator"], encoder)


def _unpack_ensemble(tensors: dict[str, Tensor], extra: dict[str, Any]) -> Ensemble:
    members = []
    for number, told in enumerate(extra["members"]):
        own = {k.removeprefix(f"{number}."): t for k, t in tensors.items() if k.startswith(f"{number}.")}
        value = unpack(told["form"], own, told["value"])
        if not isinstance(value, HardPrompt | SoftPrompt | PrefixPrompt | Neighbours):
            raise ArtefactError(f"member {number} is of the form {shown(told['form'])}, which no ensemble holds.")
        members.append(Member(value, Format.from_json(told["format"])))
    if len(members) < 2 or extra["rule"] not in get_args(Rule):
        raise ArtefactError(f"{len(members)} members with the rule {shown(extra['rule'])} are no ensemble.")
    return Ensemble(tuple(members), extra["rule"])
