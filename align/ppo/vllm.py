"""Completions from a vLLM server, which gets the policy's weights as files before each rollout.

The server is vLLM's own (``trl vllm-serve`` starts the same one) on a machine that sees
``output_dir`` under the same path, in development mode, which opens the door to its workers:

    VLLM_SERVER_DEV_MODE=1 vllm serve SFT_MODEL --logprobs-mode processed_logprobs

======================================  ========================================================
``GET  /v1/models``                     the name of the model
``GET  /server_info``                   which log-probabilities it gives
``POST /collective_rpc``                its workers' ``reload_weights(weights_path=FOLDER)``
``POST /reset_prefix_cache``            keys and values of the old weights are forgotten
``POST /v1/completions``                one prompt of token ids, its seed, the tokens' logprobs
======================================  ========================================================

Another engine computes slightly other probabilities than the one that trains, even from the same
weights. So its log-probabilities come along, and the trainer weighs every token by what they say.
"""

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from align.config import PPOStage
from align.errors import ConfigError, RunError
from align.ppo.accelerator import Group
from align.ppo.control import stream_seed
from align.ppo.generate import Completions
from align.ppo.models import POLICY, causal_lm
from align.ppo.remote import ask

TOKEN = "ALIGN_VLLM_TOKEN"  # environment variable with the server's API key
RETRIES = 3
FOLDER = "vllm_weights"  # in output_dir, while the run lasts
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs"


class Server(NamedTuple):
    """A server that answered."""

    url: str
    model: str
    timeout: float

    def ask(self, path: str, body: Any = None) -> Any:
        """What it answers to a GET, or to the POST of a body."""
        return ask(
            self.url + path,
            body,
            timeout=self.timeout,
            retries=RETRIES,
            token=TOKEN,
            advice=f"look at the log of the server behind vllm_url; it is started with `{START}`",
        )


class Sampled(NamedTuple):
    """One completion: its tokens, the log-probability of each, and whether it ended by itself."""

    ids: list[int]
    logprobs: list[float]
    ended: bool


def connect(config: PPOStage, accelerator: Any) -> Server:
    """The server behind vllm_url.

    Raises:
        ConfigError: no process holds whole weights.
        RunError: it doesn't answer, serves nothing, or gives log-probabilities of another
            temperature than that of sampling.
    """
    assert config.vllm_url is not None
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"rollout: vllm sends whole weights and {accelerator.distributed_type.value} holds "
            "them in pieces; launch with recipes/accelerate/ddp.yaml"
        )
    server = Server(config.vllm_url.rstrip("/"), "", config.vllm_timeout)
    models = server.ask("/v1/models")
    try:
        name = str(models["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"{server.url}/v1/models answered {models!r:.80}, which names no model; vllm_url must "
            f"be a vLLM server, started with `{START}`"
        ) from error
    if config.temperature != 1:
        info = server.ask("/server_info?config_format=json")
        mode = _inside(info, "vllm_config", "model_config", "logprobs_mode")
        if mode != "processed_logprobs":
            raise RunError(
                f"{server.url} gives {mode or 'unknown'} log-probabilities, which leave out the "
                f"temperature {config.temperature:g}; start it with `{START}`"
            )
    return server._replace(model=name)


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# ---------------------------------------------------------------- weights


def merged_state(policy: Any) -> dict[str, Tensor]:
    """The policy's weights by the names of the plain model; adapters are added, nothing changes."""
    lm = causal_lm(policy)
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in lm.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in lm.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.base_layer.weight
            delta = module.get_delta_weight(POLICY)
            state[f"{name}.weight"] = (weight + delta).detach().to(weight.dtype)
    return state


@torch.no_grad()
def send_weights(server: Server, policy: Any, tokenizer: Any, folder: Path) -> None:
    """Write the policy as a checkpoint and have the server load it.

    Raises:
        RunError: the server can't; the message says what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lm = causal_lm(policy)
    adapter = hasattr(policy, "peft_config")
    lm.save_pretrained(folder, state_dict=merged_state(policy) if adapter else None)
    tokenizer.save_pretrained(folder)
    arguments = {"weights_path": str(folder.resolve())}
    server.ask("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
    server.ask("/reset_prefix_cache", {})


def forget_weights(folder: Path) -> None:
    """Delete what `send_weights` wrote."""
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- completions


def sample(
    server: Server,
    config: PPOStage,
    group: Group,
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    eos_token_ids: Sequence[int],
    stream: int,
) -> Completions:
    """Completions of this process's prompts with the policy's weights of this moment.

    1. The main process sends the weights. 2. All ask for completions. 3. Nobody goes on, and loads
    other weights, before all have theirs.

    Raises:
        RunError: the server failed one of the processes.
    """
    # 1. weights
    accelerator, first = group.accelerator, group.rank * len(prompts)
    folder = Path(config.output_dir) / FOLDER
    if accelerator.is_main_process:
        send_weights(server, policy, tokenizer, folder)
    accelerator.wait_for_everyone()
    # 2. completions; 3. of all
    return group.together(
        lambda: complete(
            server,
            prompts,
            [stream_seed(config.seed, stream, 2, first + i) for i in range(len(prompts))],
            at_once=config.per_device_rollout_batch_size,
            longest=config.max_completion_length,
            temperature=config.temperature,
            eos_token_ids=eos_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            device=accelerator.device,
        )
    )


def complete(
    server: Server,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    at_once: int,
    longest: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    device: Any,
) -> Completions:
    """One completion for each prompt, by pure sampling, with the server's log-probabilities.

    A request holds one prompt: all prompts of a request would share one stream of random numbers.

    Args:
        server: of `connect`
        prompts: token ids of B prompts
        seeds: B seeds, below 2**63
        at_once: requests under way together
        longest: limit T on the length
        temperature: above 0
        eos_token_ids: tokens after which a completion ends
        pad_token_id: fills ``ids`` after the end
        device: of the result

    Raises:
        RunError: the server fails, or leaves out token ids or log-probabilities.
    """
    common = {
        "model": server.model,
        "max_tokens": longest,
        "temperature": temperature,
        "n": 1,
        "logprobs": 0,  # of the sampled token and no other
        "return_token_ids": True,
        "stop_token_ids": list(eos_token_ids),
        # Spelt out, for vLLM takes what is left out from the model's generation_config.json.
        **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
    }

    def one(row: int) -> Sampled:
        body = {**common, "prompt": list(prompts[row]), "seed": seeds[row]}
        answer = server.ask("/v1/completions", body)
        return read_choice(server.url, answer, eos_token_ids, longest)

    with ThreadPoolExecutor(max_workers=min(at_once, len(prompts))) as pool:
        rows = list(pool.map(one, range(len(prompts))))
    ids = torch.full((len(rows), longest), pad_token_id, device=device)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool, device=device)
    logprobs = torch.zeros((len(rows), longest), device=device)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], mask[i, :n] = torch.tensor(row.ids, device=device), True
        logprobs[i, :n] = torch.tensor(row.logprobs, device=device)
    return Completions(ids, mask, torch.tensor([r.ended for r in rows], device=device), logprobs)


def read_choice(url: str, answer: Any, eos_token_ids: Sequence[int], longest: int) -> Sampled:
    """The completion in an answer of ``/v1/completions``.

    Raises:
        RunError: token ids or log-probabilities are missing or don't fit each other.
    """
    try:
        (choice,) = answer["choices"]
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = [float(x) for x in choice["logprobs"]["token_logprobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{url} answered {answer!r:.120}: no token ids with their log-probabilities, without "
            "which its samples can't be corrected; use a vLLM that knows return_token_ids"
        ) from error
    ended = bool(ids) and ids[-1] in eos_token_ids
    wrong = (
        f"{len(logprobs)} log-probabilities for {len(ids)} tokens"
        if len(logprobs) != len(ids)
        else f"{len(ids)} tokens where 1 to {longest} were asked for"
        if not 1 <= len(ids) <= longest
        else "log-probabilities that are not finite"
        if not all(map(math.isfinite, logprobs))
        else f"a completion that stopped after token {ids[-1]}, which is no EOS of the policy"
        if not ended and len(ids) < longest
        else ""
    )
    if wrong:
        raise RunError(
            f"{url} answered {wrong}; check that it serves the policy's model with its tokenizer "
            "and that its context (--max-model-len) holds max_length"
        )
    return Sampled(ids, logprobs, ended)
