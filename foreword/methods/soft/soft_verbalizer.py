"""Learn a vector for each label in place of its words' output rows (WARP, Hambardzumyan et al. 2021)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from foreword.core.doc import Doc, documented
from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.core.values import Probe
from foreword.errors import ConfigError, DataError
from foreword.inference.scoring import row_features
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.tasks.label_metrics import accuracy, nll
from foreword.tasks.rows import label_of
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Amount, Count, Positive


@documented
@dataclass(frozen=True)
class SoftVerbalizerConfig:
    """Hold the options of the soft verbalizer, which AdamW trains on all rows at once.

    Step 0 has the output rows of the label words: the manual prompt, if each label has one word of one token.
    """

    learning_rate: Annotated[Positive, Doc("Learning rate of AdamW.")] = 1e-2
    steps: Annotated[Count, Doc("Number of steps over all training rows.")] = 200
    weight_decay: Annotated[Amount, Doc("Weight decay of AdamW.")] = 0.0
    eval_every: Annotated[
        Count, Doc("Steps between two evaluations on the validation rows; the best step is kept.")
    ] = 5


class SoftVerbalizer(DirectMethod):
    name = "soft-verbalizer"
    summary = "a learnt vector a label, read at the answer; the prompt stays"
    source = "Hambardzumyan et al. 2021"
    Config = SoftVerbalizerConfig
    form = "probe"
    mixed_batch = False
    freezes_lm = True

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: SoftVerbalizerConfig = job.config
        if not job.format.labels:
            raise ConfigError("soft-verbalizer needs one set of labels for all rows; this task brings options per row.")
        if not job.task.train:
            raise DataError(f"Task {job.task.name!r} has no training rows; soft-verbalizer needs some.")
        train, held = (
            row_features(lm, job.format, rows, "head", job.encoded_rows)
            for rows in (job.task.train, job.task.validation or job.task.train)
        )
        label_N = torch.tensor([label_of(row) for row in job.task.train])
        held_N = np.asarray([label_of(row) for row in job.task.validation or job.task.train])
        weight_CD, bias_C = (t.requires_grad_() for t in label_rows(lm, job.format))
        optimizer = torch.optim.AdamW([weight_CD, bias_C], lr=config.learning_rate, weight_decay=config.weight_decay)
        best: tuple[tuple[float, float], Tensor, Tensor] | None = None
        for step in range(config.steps + 1):
            if step % config.eval_every == 0 or step == config.steps:
                score = (held @ weight_CD.T + bias_C).detach().double().numpy()
                now = (float(accuracy(score, held_N)), -float(nll(score, held_N)))
                if best is None or now > best[0]:
                    best = (now, weight_CD.detach().clone(), bias_C.detach().clone())
            optimizer.zero_grad()
            cross_entropy(train @ weight_CD.T + bias_C, label_N).backward()
            optimizer.step()
        assert best is not None, "step 0 is measured"
        return Made(Probe(best[1], best[2], "head"), job.format, weight_CD.numel() + bias_C.numel())


@torch.no_grad()
def label_rows(lm: FrozenLM, form: Format) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]:
    """Return the output row and bias of each label, averaged over the tokens of its words, fp32."""
    plan = Encoder.build(lm, form).plan
    assert plan is not None, "formats with labels have words"
    unit_XD = torch.eye(lm.dims.width, device=lm.device, dtype=lm.dtype)
    zero_1D = torch.zeros_like(unit_XD[:1])
    rows, biases = [], []
    for words in plan.words:
        ids = torch.tensor([piece for word in words for piece in word])
        bias_1U = lm.piece_logits(zero_1D, ids)
        rows.append((lm.piece_logits(unit_XD, ids) - bias_1U).mean(1).float().cpu())
        biases.append(bias_1U.mean().float().cpu())
    return torch.stack(rows), torch.stack(biases)
