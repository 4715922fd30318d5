"""Small instruct models: random weights over bytes, asked through chat templates that act as well-known ones do."""

from typing import Any

from transformers import PreTrainedTokenizerFast

from foreword.models.base import FrozenLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer, random_model
from foreword.models.load import wrap

# As Qwen 2.5: without a system message of yours it writes one of its own.
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' or m.role == 'assistant' or not loop.first %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# As Mistral and Gemma: roles must take turns and begin with the user's, texts are stripped, and the beginning of the
# text is written by the template.
STRICT = (
    "{{ bos_token }}{%- if messages | length == 0 %}{{ raise_exception('There are no messages') }}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] | trim + '\n\n' %}"
    "{%- set asked = messages[1:] %}{%- else %}{%- set first = '' %}{%- set asked = messages %}{%- endif %}"
    "{%- for m in asked %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (first if loop.first else '') + m.content | trim }}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{%- endif %}"
)
CHATS = {"chatml": CHATML, "strict": STRICT}


def instruct_tokenizer(chat: str) -> PreTrainedTokenizerFast:
    """Bytes, and the marks of turns as special tokens; a turn's end ends what is generated."""
    made = byte_tokenizer("causal")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    made.chat_template = CHATS[chat]
    return made


def instruct_parts(chat: str, *, seed: int = 0, context: int = 1024) -> tuple[Any, PreTrainedTokenizerFast]:
    """A Llama of two layers and its tokenizer."""
    tokenizer = instruct_tokenizer(chat)
    return random_model("causal", tokenizer, seed, 32, 2, context), tokenizer


def instruct_lm(chat: str, **sizes: Any) -> FrozenLM:
    """The model of `instruct_parts`, frozen."""
    model, tokenizer = instruct_parts(chat, **sizes)
    return wrap(model, tokenizer, kind="causal")
