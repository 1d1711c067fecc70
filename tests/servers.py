"""Small HTTP servers on 127.0.0.1 for tests: one answers what it is told, one speaks as vLLM."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Answer = tuple[int, Any]  # status, and JSON or bytes


class Seen(list[dict[str, Any]]):
    """What a server was asked: method, path, headers, body; and where it stands."""

    url = ""


@contextmanager
def serve(answer: Callable[[str, str, Any], Answer]) -> Iterator[Seen]:
    """A server whose answers a function of (method, path, body) gives."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, method: str) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            seen.append(
                {"method": method, "path": self.path, "headers": dict(self.headers), "body": body}
            )
            status, value = answer(method, self.path, body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            try:
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has gone

        def do_GET(self) -> None:
            self.reply("GET")

        def do_POST(self) -> None:
            self.reply("POST")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TinyVLLM:
    """The part of vLLM's protocol that a rollout uses, around a tiny Hugging Face model."""

    def __init__(self, model: Any, *, mode: str = "processed_logprobs", skew: float = 1.0):
        self.model, self.mode = model.eval(), mode
        self.skew = skew  # the logits' factor by which this engine differs from training
        self.loads: list[str] = []
        self.lock = threading.Lock()
        self.change: Callable[[dict[str, Any]], None] = lambda choice: None

    def __call__(self, method: str, path: str, body: Any) -> Answer:
        if (method, path) == ("GET", "/v1/models"):
            return 200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        if (method, path) == ("GET", "/server_info?config_format=json"):
            return 200, {"vllm_config": {"model_config": {"logprobs_mode": self.mode}}}
        if (method, path) == ("POST", "/collective_rpc"):
            assert body["method"] == "reload_weights"
            self.load(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if (method, path) == ("POST", "/reset_prefix_cache"):
            return 200, b""
        assert (method, path) == ("POST", "/v1/completions"), path
        with self.lock:
            return 200, {"object": "text_completion", "choices": [self.choice(body)]}

    def load(self, folder: str) -> None:
        """Take weights by their names in a checkpoint, all of them."""
        self.loads.append(folder)
        state = load_file(Path(folder) / "model.safetensors")
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected and not [m for m in missing if m != "lm_head.weight"], missing

    @torch.no_grad()
    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        """Sample token by token, as the fields of the request say."""
        assert body["model"] == "tiny" and body["top_p"] == 1 and body["n"] == 1
        ids, out, logprobs = list(body["prompt"]), [], []
        generator = torch.Generator().manual_seed(body["seed"] % 2**63)
        while len(out) < body["max_tokens"]:
            logits = self.model(torch.tensor([ids + out])).logits[0, -1] * self.skew
            row = (logits / body["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(row.exp(), 1, generator=generator))
            out.append(token)
            logprobs.append(float(row[token]))
            if token in body["stop_token_ids"]:
                break
        choice = {
            "index": 0,
            "text": "…",
            "finish_reason": "stop" if out[-1] in body["stop_token_ids"] else "length",
            "token_ids": out if body["return_token_ids"] else None,
            "logprobs": {"token_logprobs": logprobs} if body["logprobs"] is not None else None,
        }
        self.change(choice)
        return choice
