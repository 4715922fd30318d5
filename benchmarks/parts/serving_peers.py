"""Other ways to answer the same requests with the same prompts: PEFT one by one, PEFT task by task, and by hand.

Each takes (task, text) pairs and gives probabilities of the label words, or new ids; tokenising is in the time of all.
"""

from collections.abc import Sequence
from typing import Any

import peft
import torch

from benchmarks.parts.served import FORM, LENGTH, prompt
from foreword.models.base import FrozenLM

Asked = Sequence[tuple[int, str]]


class Peers:
    """`tasks` prompts over one model: as PEFT adapters, and as one tensor."""

    def __init__(self, model: Any, lm: FrozenLM, tasks: int):
        self.model, self.tokenizer, self.device = model, lm.tokenizer, lm.device
        self.prompt_TPD = torch.stack([prompt(lm, number) for number in range(tasks)]).to(lm.device, lm.dtype)
        words = [self.tokenizer(word[0], add_special_tokens=False)["input_ids"] for word in FORM.words]
        self.label_C = torch.tensor([ids[0] for ids in words], device=self.device)
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, token_dim=lm.dims.width, num_transformer_submodules=1,
            num_layers=lm.dims.layers, num_attention_heads=lm.query_heads,
        )  # fmt: skip
        self.peft = peft.get_peft_model(model, config, adapter_name="0")
        for number in range(1, tasks):
            self.peft.add_adapter(str(number), config)
        with torch.no_grad():
            for number in range(tasks):
                self.peft.prompt_encoder[str(number)].embedding.weight.copy_(self.prompt_TPD[number])
        self.peft.eval().requires_grad_(False)

    def encoded(self, texts: Sequence[str], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids as the template puts them ([CLS] text It was), padded on one side, and the mask."""
        lists = self.tokenizer([f"{text} It was" for text in texts], add_special_tokens=False)["input_ids"]
        lists = [[self.tokenizer.cls_token_id, *ids] for ids in lists]
        longest = max(map(len, lists))
        ids_BS = torch.zeros(len(lists), longest, dtype=torch.long)
        mask_BS = torch.zeros(len(lists), longest, dtype=torch.long)
        for row, ids in enumerate(lists):
            where = slice(0, len(ids)) if side == "right" else slice(longest - len(ids), longest)
            ids_BS[row, where], mask_BS[row, where] = torch.tensor(ids), 1
        return ids_BS.to(self.device), mask_BS.to(self.device)

    @torch.no_grad()
    def labels_by_hand(self, asked: Asked) -> torch.Tensor:
        """One padded batch of input embeddings; logits of the whole vocabulary at the last position of each row."""
        ids_BS, mask_BS = self.encoded([text for _, text in asked], "right")
        prompt_BPD = self.prompt_TPD[[task for task, _ in asked]]
        embed_BSD = torch.cat([prompt_BPD, self.model.get_input_embeddings()(ids_BS)], dim=1)
        whole_BS = torch.cat([torch.ones_like(mask_BS[:, :1]).expand(-1, LENGTH), mask_BS], dim=1)
        hidden_BSD = self.model.base_model(inputs_embeds=embed_BSD, attention_mask=whole_BS)[0]
        last_B = whole_BS.sum(1) - 1
        logits_BV = self.model.get_output_embeddings()(hidden_BSD[torch.arange(len(asked)), last_B])
        return logits_BV[:, self.label_C].float().softmax(-1)

    @torch.no_grad()
    def labels_grouped(self, asked: Asked) -> torch.Tensor:
        """PEFT, one padded batch for each task."""
        out = torch.zeros(len(asked), len(self.label_C))
        for task in sorted({task for task, _ in asked}):
            rows = [row for row, (own, _) in enumerate(asked) if own == task]
            self.peft.set_adapter(str(task))
            ids_BS, mask_BS = self.encoded([asked[row][1] for row in rows], "right")
            logits_BSV = self.peft(input_ids=ids_BS, attention_mask=mask_BS).logits
            last_B = LENGTH + mask_BS.sum(1) - 1
            last_BV = logits_BSV[torch.arange(len(rows)), last_B]
            out[rows] = last_BV[:, self.label_C].float().softmax(-1).cpu()
        return out

    def labels_one_by_one(self, asked: Asked) -> torch.Tensor:
        """PEFT as its documentation serves: the adapter of the request is made the active one."""
        return torch.cat([self.labels_grouped([one]) for one in asked])

    @torch.no_grad()
    def texts_by_hand(self, asked: Asked, new: int) -> list[list[int]]:
        """One batch padded on the left, through transformers' own loop.

        The padding stands between the prompt and nothing: it comes first, so that positions follow the text.
        """
        ids_BS, mask_BS = self.encoded([text for _, text in asked], "left")
        prompt_BPD = self.prompt_TPD[[task for task, _ in asked]]
        rows, longest = ids_BS.shape
        embed_BSD = self.model.get_input_embeddings()(ids_BS)
        whole_BSD = embed_BSD.new_zeros(rows, LENGTH + longest, embed_BSD.shape[2])
        whole_BS = mask_BS.new_zeros(rows, LENGTH + longest)
        for row, length in enumerate(mask_BS.sum(1).tolist()):
            start = longest - length
            whole_BSD[row, start : start + LENGTH] = prompt_BPD[row]
            whole_BSD[row, start + LENGTH :] = embed_BSD[row, start:]
            whole_BS[row, start:] = 1
        return self.model.generate(
            inputs_embeds=whole_BSD, attention_mask=whole_BS, max_new_tokens=new, do_sample=False, pad_token_id=0
        ).tolist()

    @torch.no_grad()
    def texts_one_by_one(self, asked: Asked, new: int) -> list[list[int]]:
        """PEFT's generate, one request at a time, with its adapter active; no row is padded, which it gets wrong."""
        out = []
        for task, text in asked:
            self.peft.set_adapter(str(task))
            ids_BS, mask_BS = self.encoded([text], "left")
            made = self.peft.generate(
                input_ids=ids_BS, attention_mask=mask_BS, max_new_tokens=new, do_sample=False, pad_token_id=0
            )
            out.append(made[0, -new:].tolist())
        return out
