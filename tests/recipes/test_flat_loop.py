"""python -m pytest tests/recipes/test_flat_loop.py"""

import flat_loop
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from foreword.methods import METHODS
from foreword.methods.registry import make_job, train
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.training.loop import batch_rows
from foreword.training.trainer import _start

WORDS = {"negative": ["terrible"], "positive": ["wonderful"]}


def test_the_flat_loop_and_the_library_learn_the_same_prompt():
    """Same start, same rows, same order: two programs that share no line of loop, encoding or scoring."""
    lm = load("foreword-mini")
    task = read_task("builtin:sentiment").limit(train=24, validation=0, test=10).with_(validation=())
    form = task.format("masked", template="{soft:3} {text} It was {mask}.", label_words=WORDS)
    options = {"steps": 4, "batch_size": 6, "keep": "last"}
    job = make_job(lm, task, "prompt-tuning", options=options, form=form, seed=2)
    run = _start(lm, job)
    batches = []
    for step in range(4):
        rows = [task.train[i] for i in batch_rows(run, step)]
        batches.append(([row.fields["text"] for row in rows], [row.label for row in rows]))
    start = METHODS["prompt-tuning"].start(lm, job).leaves["embed"].detach()
    model = BertForMaskedLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    flat = flat_loop.learn(model, AutoTokenizer.from_pretrained(EMBEDDED), start, batches, ["terrible", "wonderful"])
    ours = train(lm, task, "prompt-tuning", form=form, seed=2, **options).artefact.value.embed_PD
    assert (flat - start).abs().max() > 0.01
    assert torch.allclose(flat, ours, atol=2e-4)
    assert not torch.allclose(
        flat, train(lm, task, "prompt-tuning", form=form, seed=3, **options).artefact.value.embed_PD
    )


def test_the_recipe_runs_two_steps():
    assert 0.0 <= flat_loop.main(["--steps", "2", "--test-rows", "16"]) <= 1.0
