"""Values as named tensors with what else their record needs, and back; every size, dtype and number is checked."""

from typing import Any, get_args

import torch

from foreword.core.demos import Example
from foreword.core.format import Format
from foreword.core.learnt import (
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
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Tensor
from foreword.errors import ArtefactError


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


def unpack(form: str, tensors: dict[str, Tensor], extra: dict[str, Any]) -> Learnt:
    """The value back from its tensors; every size, dtype and number is checked."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ArtefactError(f"tensor {name!r} holds NaN or infinity.")
        if not tensor.is_floating_point() and form not in ("hard", "ensemble"):
            raise ArtefactError(f"tensor {name!r} has dtype {tensor.dtype}; floating point was expected.")
    if form == "hard":
        ids = tensors.get("ids", torch.zeros(0, dtype=torch.long))
        if ids.dtype != torch.long or ids.ndim != 1 or len(ids) != extra["length"]:
            raise ArtefactError("tensor 'ids' is not a list of token ids of the recorded length.")
        return HardPrompt(ids)
    if form == "soft":
        if list(tensors["embed"].shape) != extra["shape"]:
            raise ArtefactError(
                f"tensor 'embed' has shape {list(tensors['embed'].shape)}, its record says {extra['shape']}."
            )
        return SoftPrompt(tensors["embed"])
    if form == "prefix":
        return _unpack_prefix(tensors, extra)
    if form == "weights":
        if sorted(tensors) != extra["names"]:
            raise ArtefactError("the names of the weights differ from the record's.")
        return Weights(tensors)
    if form == "pool":
        keys, values = tensors["keys"], tensors["values"]
        if list(values.shape) != extra["shape"] or list(keys.shape) != [values.shape[0], values.shape[2]]:
            raise ArtefactError(
                f"the pool has keys {list(keys.shape)} and values {list(values.shape)}, which do not fit."
            )
        return PromptPool(keys, values)
    if form == "tuned":
        return _unpack_tuned(tensors, extra)
    if form == "low-rank":
        factors = {name: (tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in extra["names"]}
        return LowRank(factors, float(extra["scale"]), tuple(extra["transposed"]))
    if form == "probe":
        return Probe(tensors["weight"], tensors["bias"], extra["pool"])
    if form == "word-counts":
        if len(extra["words"]) != len(tensors["idf"]):
            raise ArtefactError(f"{len(extra['words'])} words are recorded for {len(tensors['idf'])} columns.")
        return WordCounts(tuple(extra["words"]), tensors["idf"], tensors["weight"], tensors["bias"])
    if form == "neighbours":
        return _unpack_neighbours(tensors["embed"], extra)
    if form == "ensemble":
        return _unpack_ensemble(tensors, extra)
    raise ArtefactError(f"form {form!r} is unknown; known are {', '.join(FORM.values())}.")


def _unpack_tuned(tensors: dict[str, Tensor], extra: dict[str, Any]) -> Tuned:
    own = {k.removeprefix("prompt."): t for k, t in tensors.items() if k.startswith("prompt.")}
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    prompt = unpack(extra["form"], own, extra)
    if sorted(weights) != extra["names"] or not isinstance(prompt, SoftPrompt | PrefixPrompt):
        raise ArtefactError("the names of the weights, or the prompt beside them, differ from the record's.")
    return Tuned(prompt, Weights(weights))


def _unpack_prefix(tensors: dict[str, Tensor], extra: dict[str, Any]) -> PrefixPrompt:
    sites = {}
    for site, shape in extra["sites"].items():
        pair = tensors[f"{site}.keys"], tensors[f"{site}.values"]
        if any(list(t.shape) != shape for t in pair):
            raise ArtefactError(
                f"the prefix of site {site!r} has shape {list(pair[0].shape)}, its record says {shape}."
            )
        sites[site] = pair
    if not isinstance(extra["start"], int) or extra["start"] < 0:
        raise ArtefactError(f"start is {extra['start']!r}; it must be 0 or more.")
    return PrefixPrompt(sites, extra["start"])


def _unpack_neighbours(embed_ND: Tensor, extra: dict[str, Any]) -> Neighbours:
    examples = tuple(
        Example({str(name): str(text) for name, text in e["fields"].items()}, str(e["word"])) for e in extra["examples"]
    )
    if embed_ND.ndim != 2 or len(examples) != len(embed_ND) or not examples:
        raise ArtefactError(f"{len(examples)} examples are recorded for embeddings of shape {list(embed_ND.shape)}.")
    if not isinstance(extra["count"], int) or extra["count"] < 1:
        raise ArtefactError(f"each row is shown {extra['count']!r} examples; it must be 1 or more.")
    return Neighbours(examples, embed_ND, extra["count"], str(extra["separator"]), extra["encoder"])


def _unpack_ensemble(tensors: dict[str, Tensor], extra: dict[str, Any]) -> Ensemble:
    members = []
    for number, told in enumerate(extra["members"]):
        own = {k.removeprefix(f"{number}."): t for k, t in tensors.items() if k.startswith(f"{number}.")}
        value = unpack(told["form"], own, told["value"])
        if not isinstance(value, HardPrompt | SoftPrompt | PrefixPrompt | Neighbours):
            raise ArtefactError(f"member {number} is of the form {told['form']}, which no ensemble holds.")
        members.append(Member(value, Format.from_json(told["format"])))
    if len(members) < 2 or extra["rule"] not in get_args(Rule):
        raise ArtefactError(f"{len(members)} members with the rule {extra['rule']!r} are no ensemble.")
    return Ensemble(tuple(members), extra["rule"])
