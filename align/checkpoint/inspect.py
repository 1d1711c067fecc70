"""What a checkpoint directory holds, read from JSON and safetensors headers. No torch."""

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align import paths
from align.checkpoint.tokenizer_files import TokenizerFiles, read_json
from align.errors import CheckpointError

CAUSAL = ("ForCausalLM", "LMHeadModel")
REWARD = ("ForSequenceClassification",)
MASKED = ("ForMaskedLM",)
BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8}
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class CheckpointInfo(NamedTuple):
    """What is known of a checkpoint before it is loaded."""

    path: Path
    architecture: str
    kind: Literal["causal", "reward", "masked", "adapter"]
    parameters: int
    """Of the weights in this directory; an adapter's own, without its base."""
    bytes: int
    dtype: str
    vocab_size: int
    """Rows of the embedding."""
    context: int
    """Longest sequence in tokens."""
    hidden_size: int
    layers: int
    num_labels: int | None
    """Width of a reward model's head; None without a head."""
    pad_token_id: int | None
    eos_token_ids: list[int]
    has_chat_template: bool
    base: str | None
    """An adapter's base: path or Hub id."""


# ---------------------------------------------------------------- where it is


def resolve(name: str, revision: str | None = None) -> str:
    """The path or Hub id that a name in a recipe stands for.

    A path that exists, as it is or below ALIGN_DATA, is never looked for on the Hub.

    Raises:
        CheckpointError: no such directory, or a Hub id that is not cached while offline.
    """
    if name == "quickstart-base":
        if not (paths.QUICKSTART_BASE / "config.json").is_file():
            raise CheckpointError(
                f"quickstart-base is not at {paths.QUICKSTART_BASE}; "
                "reinstall align, or make it again: python -m align.quickstart.pretrain"
            )
        return str(paths.QUICKSTART_BASE)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    stored = Path(os.environ.get("ALIGN_DATA", ""), name)
    if "ALIGN_DATA" in os.environ and (stored / "config.json").is_file():
        return str(stored)
    if path.exists():
        raise CheckpointError(f"{name} is a file, not a checkpoint directory; give its folder")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise CheckpointError(
            f"no checkpoint at {name}; run the stage that makes it, or give another path or Hub id"
        )
    if _offline() and _snapshot(name, revision) is None:
        at = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{name} is neither a folder here nor in the Hub cache, and HF_HUB_OFFLINE is set; "
            f"fetch it where there is network: hf download {name}{at}"
        )
    return name


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The cached snapshot of a Hub id, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for file in ("config.json", "adapter_config.json"):
            found = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return Path(found).parent
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor a Hub id (owner/name); correct it"
        ) from error
    return None


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The directory that holds a checkpoint on this machine; None for a Hub id not yet fetched."""
    path = Path(resolve(name, revision))
    return path if path.is_dir() else _snapshot(name, revision)


# ---------------------------------------------------------------- what it holds


def inspect_checkpoint(
    name: str | Path,
    revision: str | None = None,
    *,
    expect: Literal["causal", "reward", "masked"] | None = None,
) -> CheckpointInfo:
    """Check a checkpoint without loading it.

    Raises:
        CheckpointError: nothing there, no weights, truncated weights, wrong architecture, a head
            of the wrong size, a tokenizer that does not fit, no EOS.
    """
    folder = local_folder(str(name), revision)
    if folder is None:
        raise CheckpointError(f"{name} is not on this machine yet; fetch it: hf download {name}")
    if (folder / "adapter_config.json").is_file():
        return _inspect_adapter(folder, expect)
    config = read_json(folder / "config.json")
    tensors = read_headers(folder, "model")
    architecture = str((config.get("architectures") or ["nothing"])[0])
    kind = _kind(folder, architecture, expect)
    text = config.get("text_config", config)
    vocabulary = _embedding(tensors)[0] or int(text.get("vocab_size") or 0)
    labels = _head_width(folder, tensors) if kind == "reward" else None
    _check_shapes(folder, text, tensors)
    tokenizer = TokenizerFiles.read(folder)
    _check_fit(folder, tokenizer, vocabulary)
    ids = _eos_ids(folder, config, tokenizer)
    if not ids and kind != "masked":
        raise CheckpointError(
            f"{folder} names no EOS token: neither tokenizer_config.json (eos_token) nor "
            "generation_config.json (eos_token_id); a model without one can't end its answers: "
            "add the token that ended its training documents"
        )
    return CheckpointInfo(
        path=folder,
        architecture=architecture,
        kind=kind,
        parameters=_parameters(tensors),
        bytes=_weight_bytes(tensors),
        dtype=_dtype(tensors),
        vocab_size=vocabulary,
        context=_first(text, "max_position_embeddings", "n_positions", "max_seq_len") or 0,
        hidden_size=_first(text, "hidden_size", "n_embd", "d_model") or 0,
        layers=_first(text, "num_hidden_layers", "n_layer") or 0,
        num_labels=labels,
        pad_token_id=_first(config, "pad_token_id"),
        eos_token_ids=ids,
        has_chat_template=tokenizer.chat_template is not None,
        base=None,
    )


def is_masked(name: str | Path) -> bool:
    """Whether a checkpoint on this machine is a masked language model, which can be evaluated."""
    folder = local_folder(str(name))
    if folder is None or not (folder / "config.json").is_file():
        return False
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    return str(architectures[0]).endswith(MASKED)


def _inspect_adapter(folder: Path, expect: str | None) -> CheckpointInfo:
    adapter = read_json(folder / "adapter_config.json")
    base_name = adapter.get("base_model_name_or_path")
    if not base_name:
        raise CheckpointError(
            f"{folder}/adapter_config.json names no base (base_model_name_or_path); add it"
        )
    reward = adapter.get("task_type") == "SEQ_CLS"
    if expect and (expect == "reward") != reward:
        raise CheckpointError(
            f"{folder} is a {'reward' if reward else 'language'}-model adapter; this stage needs a "
            f"{'reward' if expect == 'reward' else 'language'} model; give another checkpoint"
        )
    tensors = read_headers(folder, "adapter_model")
    base = inspect_checkpoint(base_name, adapter.get("revision"))
    tokenizer = TokenizerFiles.read(folder)
    own_config = folder / "config.json"
    config = read_json(own_config) if own_config.is_file() else {}
    return base._replace(
        path=folder,
        kind="adapter",
        parameters=_parameters(tensors),
        bytes=_weight_bytes(tensors),
        dtype=_dtype(tensors),
        num_labels=_head_width(folder, tensors) if reward else None,
        pad_token_id=config.get("pad_token_id", base.pad_token_id),
        eos_token_ids=_eos_ids(folder, config, tokenizer) or base.eos_token_ids,
        has_chat_template=tokenizer.chat_template is not None or base.has_chat_template,
        base=str(base_name),
    )


def _kind(
    folder: Path, architecture: str, expect: str | None
) -> Literal["causal", "reward", "masked"]:
    if architecture.endswith(MASKED) and expect == "masked":
        return "masked"
    if architecture.endswith(CAUSAL) and expect != "reward":
        return "causal"
    if architecture.endswith(REWARD) and expect != "causal":
        return "reward"
    wanted = {
        "causal": "a language model (…ForCausalLM)",
        "reward": "a reward model (…ForSequenceClassification)",
    }.get(expect or "", "a language model (…ForCausalLM) or a reward model")
    raise CheckpointError(
        f"{folder} holds {architecture}; this needs {wanted}; give another checkpoint"
    )


def _head_width(folder: Path, tensors: dict[str, "Tensor"]) -> int:
    """Rows of the score head, which must be 1."""
    heads = {k: t for k, t in tensors.items() if k.rpartition(".")[0].split(".")[-1] == "score"}
    if not heads:
        raise CheckpointError(
            f"{folder} has no score head (score.weight); it is not a trained reward model: "
            "make one with recipes/reward.py"
        )
    name, tensor = next(iter(heads.items()))
    if tensor.shape[0] != 1:
        raise CheckpointError(
            f"{folder} has a head with {tensor.shape[0]} outputs ({name}); a reward model has one: "
            "train it with num_labels=1 (recipes/reward.py does)"
        )
    return 1


def _check_shapes(folder: Path, text: dict[str, Any], tensors: dict[str, "Tensor"]) -> None:
    """What config.json says and what the weights are: rows, width, number of layers."""
    rows, width = _embedding(tensors)
    wide = _first(text, "word_embed_proj_dim", "hidden_size", "n_embd", "d_model")
    numbers = [
        int(n) for name in tensors for n in re.findall(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    ]
    said_layers = _first(text, "num_hidden_layers", "n_layer") or 0
    for what, said, found, wrong in (
        ("vocab_size", _first(text, "vocab_size"), rows, rows != _first(text, "vocab_size")),
        ("hidden_size", wide, width, width != wide),
        ("num_hidden_layers", said_layers, (n := max(numbers, default=-1) + 1), n < said_layers),
    ):
        if said and found and wrong:
            raise CheckpointError(
                f"{folder}: config.json says {what} {said} and the weights have {found}; they "
                "belong to different models: copy both again from one source"
            )


def _check_fit(folder: Path, tokenizer: TokenizerFiles, rows: int) -> None:
    if not tokenizer.found:
        raise CheckpointError(
            f"{folder} holds no tokenizer (tokenizer.json); copy the model's tokenizer files there"
        )
    if tokenizer.vocabulary and max(tokenizer.vocabulary.values()) >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {max(tokenizer.vocabulary.values())} and the "
            f"model's embedding {rows} rows; this tokenizer belongs to another model: "
            "copy the right tokenizer files into the folder"
        )


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: TokenizerFiles) -> list[int]:
    """The tokenizer's EOS first, then those of generation_config.json, else of config.json."""
    generation = folder / "generation_config.json"
    said = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if said is None and tokenizer.eos_id is None:
        said = config.get("eos_token_id")
    ids = [] if said is None else said if isinstance(said, list) else [said]
    return list(dict.fromkeys(i for i in [tokenizer.eos_id, *ids] if i is not None))


def _first(values: dict[str, Any], *names: str) -> int | None:
    return next((int(values[n]) for n in names if isinstance(values.get(n), int)), None)


# ---------------------------------------------------------------- safetensors headers


class Tensor(NamedTuple):
    """One tensor of a safetensors header."""

    dtype: str
    shape: list[int]


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of ``model`` or ``adapter_model``: one, or the shards of an index.

    Raises:
        CheckpointError: none; pickled weights are refused.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return [folder / n for n in sorted(set(read_json(index).get("weight_map", {}).values()))]
    if (folder / f"{stem}.safetensors").is_file():
        return [folder / f"{stem}.safetensors"]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        raise CheckpointError(
            f"{folder} has pickled weights only ({pickles[0]}), which can run any code when read; "
            "save them as safetensors (save_pretrained does)"
        )
    raise CheckpointError(
        f"{folder} holds no weights ({stem}.safetensors); copy them there or give another folder"
    )


def read_headers(folder: Path, stem: str) -> dict[str, Tensor]:
    """Tensor name -> type and shape, with every file's size checked against its header."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, stem):
        tensors.update(read_header(file))
    return tensors


def read_header(file: Path) -> dict[str, Tensor]:
    """The header of one safetensors file.

    Raises:
        CheckpointError: missing, not safetensors, or shorter or longer than its header says.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, but the index names it; copy it again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        text = stream.read(length) if length <= size - 8 else b""
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(
            f"{file} is truncated or not safetensors: {size:,} bytes found, header unreadable; "
            "copy it again"
        ) from None
    header.pop("__metadata__", None)
    expected = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    if size != expected:
        raise CheckpointError(
            f"{file} is {'truncated' if size < expected else 'too long'}: {size:,} bytes found, "
            f"{expected:,} expected; copy it again"
        )
    return {name: Tensor(t["dtype"], t["shape"]) for name, t in header.items()}


def _parameters(tensors: dict[str, Tensor]) -> int:
    return sum(math.prod(t.shape) for t in tensors.values())


def _weight_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(math.prod(t.shape) * BITS.get(t.dtype, 32) // 8 for t in tensors.values())


def _dtype(tensors: dict[str, Tensor]) -> str:
    """The type that most of the weights have."""
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(by_type, key=by_type.__getitem__, default="F32")
    return NAMES.get(most, most)


def _embedding(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Rows and width of the token embedding, 0 when no tensor is called like one."""
    for name, tensor in tensors.items():
        if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
            return tensor.shape[0], tensor.shape[1]
    return 0, 0
