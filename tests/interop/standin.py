"""A stand-in for `vllm serve --enable-prompt-embeds`, by what its documentation says of `prompt_embeds`."""

import base64
import contextlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LIKELIEST = 20


def documented(data: str, hidden: int) -> Tensor:
    """One `prompt_embeds` as the documentation has it. Raises: ValueError for anything else."""
    try:
        tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)
    except Exception as error:
        raise ValueError(f"not base64 of a saved tensor: {error}") from None
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError("not a dense tensor")
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"not a float tensor: {tensor.dtype}")
    if tensor.ndim != 2 or tensor.shape[1] != hidden or not len(tensor):
        raise ValueError(f"not [tokens, {hidden}]: {list(tensor.shape)}")
    return tensor


@contextlib.contextmanager
def serving(model: Any, tokenizer: Any, asked: list[dict[str, Any]]) -> Iterator[str]:
    """The address of /v1; requests are kept in `asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            try:
                assert self.path == "/v1/completions"
                status, told = 200, answer(model, tokenizer, body)
            except ValueError as error:
                status, told = 400, {"error": {"message": str(error)}}
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@torch.no_grad()
def answer(model: Any, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    given = body["prompt_embeds"]
    rows = [documented(one, model.config.hidden_size) for one in ([given] if isinstance(given, str) else given)]
    choices = []
    for index, row in enumerate(rows):
        # plain transformers, a token at a time: what the row's vectors say, and nothing of Foreword
        embeds = row[None].to(model.dtype)
        text, top = [], []
        for _ in range(body["max_tokens"]):
            log = model(inputs_embeds=embeds).logits[0, -1].float().log_softmax(-1)
            text.append(int(log.argmax()))
            best = log.topk(body.get("logprobs") or 1)
            top.append({f"token_id:{i}": float(p) for i, p in zip(best.indices, best.values, strict=True)})
            if text[-1] == tokenizer.eos_token_id:
                break
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[text[-1]]]))], 1)
        logprobs = {"tokens": [f"token_id:{i}" for i in text], "top_logprobs": top} if "logprobs" in body else None
        said = tokenizer.decode(text, skip_special_tokens=True)
        choices.append({"index": index, "text": said, "logprobs": logprobs, "finish_reason": "length"})
    # several prompts are answered in any order
    return {"id": "x", "object": "text_completion", "created": 0, "model": body["model"], "choices": choices[::-1]}
