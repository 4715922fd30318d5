"""Train the embedded model: one set of weights, masked and causal language modelling in turn. See below for how long.

    python recipes/embedded_model.py --steps 5000 --tokens 65536 --rate 1e-3    the shipped weights, on a GPU
    python recipes/embedded_model.py --steps 12500                 two passes; the same command goes on where it stopped
    python recipes/embedded_model.py --steps 12500 --minutes 60    and stops after an hour
    python recipes/embedded_model.py --export runs/embedded-model/model
    python recipes/embedded_model.py --measure runs/embedded-model/model --measure foreword/data/foreword-mini

Two CPU cores read 2,000 pieces a second, 7 hours a pass; an NVIDIA H200 650,000, and the shipped weights' 6.4 passes
took it eight minutes. Expect the figures of the card (foreword/data/foreword-mini/README.md), which
recipes/embedded_model_card.py makes; a GPU adds in no fixed order, so the bytes are others.

Weights are bf16 while they run, as they are shipped, with fp32 masters behind them. Every batch follows from the seed
and the step alone, so a checkpoint holds the masters, AdamW's two averages and the step; stopped and continued on a CPU
with as many threads, a run ends in the same bytes. `--steps` may be changed on the way (lower it to finish early): the
learning rate is constant over the first half of the plan and falls to 0 over the second.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from embedded_model_losses import backward_of_output, hidden_at, measure, moved
from embedded_model_text import Batch, Plan, batches_of, sha256, stream_of
from ending import ended
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

from foreword.core.files import write_folder, write_whole
from foreword.core.shapes import Float, Tensor
from foreword.errors import ConfigError
from foreword.evaluation.compare import FailedRun
from foreword.models.hf.loading import EMBEDDED

EMBEDDING, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"  # of the tied output
AT_ONCE = {False: 2048, True: 65536}  # pieces in one pass, without and with a GPU: as much as the caches hold


def require_model(folder: Path) -> None:
    """Raises: ConfigError where one of a model's two files is missing."""
    if not all((folder / name).exists() for name in ("config.json", "model.safetensors")):
        raise ConfigError(f"There is no model in {folder}; give a folder with config.json and model.safetensors.")


def read_model(folder: Path, dtype: torch.dtype, device: torch.device) -> BertForMaskedLM:
    """Weights of a BERT without dropout; a folder without an output head, such as all-MiniLM-L6-v2, gets a new one.

    Raises: ConfigError for other families and vocabularies.
    """
    require_model(folder)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "bert" or config.vocab_size != len(AutoTokenizer.from_pretrained(EMBEDDED)):
        raise ConfigError(f"The model in {folder} is not a BERT with the 30,522 uncased word pieces; give one that is.")
    torch.manual_seed(0)  # of a new head
    attention = "sdpa" if device.type == "cuda" else "eager"  # which is faster at these sizes
    model = BertForMaskedLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.eval().to(device)


class State:
    """A model that runs in bf16, its fp32 masters with AdamW, and how many steps they have made."""

    def __init__(self, start: Path, device: torch.device):
        self.model = read_model(start, torch.bfloat16, device)
        self.masters = {n: nn.Parameter(p.detach().float()) for n, p in self.model.named_parameters()}
        self.grads = {name: torch.zeros_like(master.data) for name, master in self.masters.items()}
        for name, master in self.masters.items():
            master.grad = self.grads[name]
        groups = [
            {"params": [p for p in self.masters.values() if (p.ndim > 1) == matrix], "weight_decay": 0.01 * matrix}
            for matrix in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.step = 0

    def update(self, batches: list[Batch], rate: float) -> Float[Tensor, ""]:
        """One step, gradients clipped to norm 1; returns the mean loss before it, which a GPU may still be summing."""
        count, total = max(1, sum(len(b.place_N) for b in batches)), torch.zeros((), device=self.model.device)
        output, grads = self.model.cls.predictions.decoder, self.grads
        for grad in grads.values():
            grad.zero_()
        for batch in batches:
            hidden_ND, target_N = hidden_at(self.model, batch), moved(batch.target_N, self.model.device)
            own = (output.weight, output.bias, target_N, grads[EMBEDDING], grads[BIAS], count)
            loss, grad_ND = backward_of_output(hidden_ND.detach(), *own)
            hidden_ND.backward(grad_ND)
            total += loss
        for name, param in self.model.named_parameters():
            if param.grad is not None:  # the output's bias has only its own
                grads[name] += param.grad
                param.grad = None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        self.optimizer.step()
        self._round()
        self.step += 1
        return total / count

    def save(self, file: Path, key: str) -> None:
        """One file, in place of the last at once."""
        tensors = {f"weight/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for part in ("exp_avg", "exp_avg_sq"):
                tensors[f"{part}/{name}"] = self.optimizer.state[master][part]
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(file, save(tensors, {"run": json.dumps([self.step, key])}))  # two entries would stand in any order

    def restore(self, file: Path, key: str | None) -> None:
        """Raises: ConfigError where there is no checkpoint or one of other options; `key` None takes any."""
        if not file.exists():
            raise ConfigError(f"There is no checkpoint {file}; train first, or give the --out of the run.")
        with safe_open(str(file), "pt", str(self.model.device)) as kept:
            self.step, own = json.loads(kept.metadata()["run"])
            if key not in (None, own):
                raise ConfigError(
                    f"{file} is of another run: it says {own}, and asked for is {key}. Use the options of that run, or "
                    "another --out."
                )
            for name, master in self.masters.items():
                master.data.copy_(kept.get_tensor(f"weight/{name}"))
                state = {part: kept.get_tensor(f"{part}/{name}") for part in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[master] = {"step": torch.tensor(float(self.step), device=master.device), **state}
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for name, param in self.model.named_parameters():
            param.copy_(self.masters[name])


def rate_of(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, constant to the middle of the plan, then linear to 0 at its end."""
    return peak * min(1.0, (step + 1) / max(1, warmup), 2 * (steps - step) / steps)


def export(state: State, start: Path, folder: Path) -> None:
    """The layout of the embedded model: tied bf16 weights, BERT's config, and the tokenizer's two files."""
    config = AutoConfig.from_pretrained(start)
    config.architectures, config.dtype = ["BertForMaskedLM"], torch.bfloat16
    weights = {name: param.detach().cpu().contiguous() for name, param in state.model.named_parameters()}
    files = {name: (EMBEDDED / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    files["config.json"] = config.to_json_string().encode()
    files["model.safetensors"] = save(weights, {"format": "pt"})
    write_folder(folder, files)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C only fill the list, so that the step is finished and saved."""
    caught: list[int] = []
    before = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(given: argparse.Namespace) -> State:
    """Go on from the checkpoint, if there is one, to the planned end, the last minute or a signal."""
    state = State(given.start, given.device)
    context = state.model.config.max_position_embeddings
    if given.tokens <= 0 or given.tokens % (16 * context):
        raise ConfigError(f"--tokens is {given.tokens}; a step takes a multiple of {16 * context}.")
    plan = Plan(given.seed, context, given.tokens)
    stream, valid = stream_of(given.corpus, given.out), stream_of(given.valid, given.out)
    if plan.steps_a_pass(len(stream)) < 1 or len(valid) <= 2 * context:
        raise ConfigError(f"{given.corpus} or {given.valid} is too small for steps of {given.tokens} pieces.")
    key = json.dumps(asdict(plan) | {"corpus": sha256(given.corpus)[:12], "start": weights_sha(given.start)[:12]})
    checkpoint = given.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.restore(checkpoint, key)
    log = Log(given.out / "log.jsonl")
    about = {"pieces": len(stream), "steps": given.steps, "rate": given.rate, "warmup": given.warmup, "of": key}
    log.write(begin=state.step, device=given.device.type, threads=torch.get_num_threads(), **about)
    began, spent = time.monotonic(), 0.0
    told: list[list[Tensor]] = [[], []]
    with stopping() as caught:
        while state.step < given.steps:
            at = time.monotonic()
            rate = rate_of(state.step, given.steps, given.rate, given.warmup)
            batches = batches_of(plan, stream, state.step, AT_ONCE[given.device.type == "cuda"])
            told[state.step % 2].append(state.update(batches, rate))
            spent += time.monotonic() - at
            minutes = (time.monotonic() - began) / 60
            over = bool(caught) or state.step >= given.steps or (given.minutes is not None and minutes >= given.minutes)
            if state.step % given.log_every == 0 or over:
                at = time.monotonic()
                masked, causal = (float(torch.stack(part).mean()) if part else None for part in told)
                spent += time.monotonic() - at  # a GPU is waited for here
                speed = plan.tokens * sum(map(len, told)) / spent
                passes = state.step / plan.steps_a_pass(len(stream))
                log.write(
                    step=state.step, masked=masked, causal=causal, rate=rate, passes=passes, tokens_a_second=speed
                )
                spent, told = 0.0, [[], []]
            if state.step % given.save_every == 0 or over:
                state.save(checkpoint, key)
                if not caught:
                    log.write(step=state.step, valid=measure(state.model, valid, given.check_rows))
            if over:
                break
    return state


class Log:
    """JSON Lines, added to; steps after the last checkpoint of a killed run stand in it twice."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **told: Any) -> None:
        line = json.dumps(json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.5g}")))
        with self.file.open("a") as file:
            print(line, file=file)
        print(line, file=sys.stderr, flush=True)


def weights_sha(folder: Path) -> str:
    """Raises: ConfigError where there is no model."""
    require_model(folder)
    return sha256(folder / "model.safetensors")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path("../shared")
    parser.add_argument("--start", type=Path, default=shared / "models" / "foreword-mini", help="weights to start from")
    parser.add_argument("--corpus", type=Path, default=shared / "corpus" / "corpus.jsonl.xz")
    parser.add_argument("--valid", type=Path, default=shared / "corpus" / "valid.jsonl.xz")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded-model"), help="checkpoint, log, pieces")
    parser.add_argument("--steps", type=int, default=12500, help="planned steps in all [12500]")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on later")
    parser.add_argument("--tokens", type=int, default=8192, help="a step; on a GPU 65536 or more [8192]")
    parser.add_argument("--rate", type=float, default=5e-4, help="the highest learning rate [5e-4]")
    parser.add_argument("--warmup", type=int, default=200, help="steps [200]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints, measured briefly [250]")
    parser.add_argument("--check-rows", type=int, default=16, help="rows of that measurement [16]")
    parser.add_argument("--rows", type=int, default=128, help="rows of --measure as long as the context [128]")
    parser.add_argument("--measure", type=Path, action="append", default=[], metavar="FOLDER", help="train nothing")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="train nothing; write the checkpoint's model")
    parser.add_argument("--device", default="auto", help="auto: cuda if there is one")
    parser.add_argument("--threads", type=int, help="threads of torch")
    given = parser.parse_args(arguments)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    given.device = torch.device(auto if given.device == "auto" else given.device)
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    return ended(given.out, lambda: run(given), given.threads)


def run(given: argparse.Namespace) -> list[FailedRun]:
    if given.export:
        state = State(given.start, given.device)
        state.restore(given.out / "checkpoint.safetensors", None)
        export(state, given.start, given.export)
    for folder in given.measure:
        model = read_model(folder, torch.float32, given.device)
        found = measure(model, stream_of(given.valid, given.out), given.rows)
        print(json.dumps({"folder": str(folder), "sha256": weights_sha(folder), **found}, indent=1))
    if not given.export and not given.measure:
        train(given)
    return []


if __name__ == "__main__":
    sys.exit(main())
