"""Load tokenizers, policies and reward models; merge adapters. torch is imported when needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align.checkpoint.inspect import inspect_checkpoint, local_folder, resolve
from align.checkpoint.lora import quiet_peft
from align.checkpoint.template import find_template
from align.checkpoint.tokenizer_files import pad_token, read_json
from align.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.config import StageConfig


class Loaded(NamedTuple):
    """A model and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


# ---------------------------------------------------------------- tokenizer


def load_tokenizer(
    path: str,
    *,
    chat_template: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    need_template: bool = True,
) -> PreTrainedTokenizerBase:
    """A tokenizer with a PAD of its own and the chat template of the run.

    Raises:
        CheckpointError: no tokenizer, no EOS, no chat template (unless ``need_template`` is off).
        ConfigError: no such chat template.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # "Loading weights", "Writing model shards": noise beside ours
    name = resolve(path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"no tokenizer can be loaded from {path} ({error}); copy its tokenizer files there"
        ) from error
    if tokenizer.eos_token is None:
        raise CheckpointError(
            f"the tokenizer of {path} has no EOS token, so answers could not end; "
            "set eos_token in its tokenizer_config.json"
        )
    own = pad_token(
        tokenizer.get_vocab(), tokenizer.pad_token, [tokenizer.eos_token], tokenizer.unk_token
    )
    if own != tokenizer.pad_token:
        tokenizer.add_special_tokens({"pad_token": own})
    tokenizer.padding_side = "right"
    if chat_template or (need_template and tokenizer.chat_template is None):
        tokenizer.chat_template = find_template(local_folder(path, revision), chat_template).text
    return tokenizer


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's EOS first, then the model's others.

    ``model`` is a model, a generation config, or None.
    """
    source = getattr(model, "generation_config", None) or model
    said = getattr(source, "eos_token_id", None)
    ids = said if isinstance(said, list) else [said]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *ids] if i is not None))


# ---------------------------------------------------------------- policy


def load_policy(config: StageConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The causal language model that a stage trains, fitted to its tokenizer.

    A parent adapter is merged into its base, so that a new adapter (or full training) starts from
    the parent's behaviour; the new adapter's base is then the parent's directory.
    """
    model = _causal(
        config.model_name_or_path,
        config.model_revision,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        quantization_config=_four_bits(config),
    )
    model = _fit(model, tokenizer)
    model.name_or_path = model.config._name_or_path = config.model_name_or_path
    return model


def load_causal(
    path: str,
    dtype: str = "float32",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> Loaded:
    """A language model for evaluation or sampling: adapters merged, no template needed."""
    tokenizer = load_tokenizer(
        path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        need_template=False,
    )
    model = _causal(path, revision, dtype=dtype, trust_remote_code=trust_remote_code)
    return Loaded(_fit(model, tokenizer).eval(), tokenizer)


def _causal(path: str, revision: str | None, **options: Any) -> PreTrainedModel:
    """Weights of a language model; an adapter is merged into its base, which may be one itself."""
    from transformers import AutoModelForCausalLM

    name, folder = resolve(path, revision), local_folder(path, revision)
    if folder is not None:
        inspect_checkpoint(path, revision, expect="causal")
        if (folder / "adapter_config.json").is_file():
            return _merged(folder, options)
    options = {key: value for key, value in options.items() if value is not None}
    return _pretrained(AutoModelForCausalLM, name, revision, **options)


def _pretrained(cls: Any, name: str, revision: str | None, **options: Any) -> PreTrainedModel:
    """``cls.from_pretrained``, which would draw weights at random where the files have none.

    A model without the sdpa kernel (Gemma 2, BLOOM, GPT-J) is loaded with eager.

    Raises:
        CheckpointError: transformers can't make this model, or weights are missing.
        ConfigError: its attention kernel is not installed.
    """
    import torch

    try:
        model, found = cls.from_pretrained(
            name, revision=revision, use_safetensors=True, output_loading_info=True, **options
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".!")
        if options.get("attn_implementation") == "sdpa" and "scaled_dot_product_attention" in why:
            return _pretrained(cls, name, revision, **{**options, "attn_implementation": "eager"})
        if "FlashAttention" in why:
            raise ConfigError(
                f"attn_implementation is {options['attn_implementation']}: {why}; install it, or "
                "set attn_implementation: sdpa"
            ) from error
        if "ignore_mismatched_sizes" in why:
            why = "weights have other shapes than config.json says"
        raise CheckpointError(
            f"{name} can't be loaded: {why}; the installed transformers must know its "
            "architecture, and config.json and weights must belong together: copy both again, or "
            "give another checkpoint"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} of the weights that its config.json asks for "
            f"({missing[0]}); config.json belongs to another model, or files are missing: "
            "copy both again from one source"
        )
    return model


def _merged(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    from peft import PeftModel

    adapter = read_json(folder / "adapter_config.json")
    base = _causal(adapter["base_model_name_or_path"], adapter.get("revision"), **options)
    base = _fit(base, load_tokenizer(str(folder), need_template=False))
    with quiet_peft():
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(merged).pop(attribute, None)
    return merged


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Embedding rows for every token, and the tokenizer's PAD and EOS in both configs.

    A new row (PAD) is the mean of the old ones: the model never picks it, whatever it reads.
    The embedding's padding_idx follows: where it was EOS, EOS would get no gradient there.
    """
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > old:
        model.resize_token_embeddings(needed, mean_resizing=False)
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
            with torch.no_grad():
                layer.weight[old:] = layer.weight[:old].mean(0)
    if model.get_input_embeddings().padding_idx is not None:
        model.get_input_embeddings().padding_idx = tokenizer.pad_token_id
    ids = eos_token_ids(model, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    return model


def _four_bits(config: StageConfig) -> Any:
    if not config.load_in_4bit:
        return None
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "load_in_4bit needs bitsandbytes, which is not installed; "
            "pip install 'align-suite[qlora]', or set load_in_4bit: false"
        )
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


# ---------------------------------------------------------------- reward model


def new_reward_model(config: StageConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The policy's backbone under a fresh scalar head, ~ N(0, 1 / sqrt(d + 1)).

    The head's initialisation is that of Stiennon et al. (2009.01325), appendix B.1, as
    2403.17031 (detail 3.2) found it in the code.
    """
    import torch

    policy = load_policy(config, tokenizer)
    model = _under_head(policy)
    width = model.score.in_features
    generator = torch.Generator().manual_seed(config.seed)
    weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
    model.score.weight = torch.nn.Parameter(weight.to(policy.dtype))
    return model.to(policy.device)


def load_reward_model(
    path: str,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> Loaded:
    """A trained reward model with its own tokenizer; an adapter is merged.

    ``model.config.score_offset`` (0 where absent) is what `align.scoring` subtracts from a score.

    Raises:
        CheckpointError: not a reward model, a head of the wrong size, PAD missing or equal to EOS.
    """
    from transformers import AutoModelForSequenceClassification

    info = inspect_checkpoint(path, revision, expect="reward")
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if info.pad_token_id is None or info.pad_token_id in info.eos_token_ids:
        raise CheckpointError(
            f"the reward model {path} has PAD {info.pad_token_id} and EOS {info.eos_token_ids}: "
            "it was trained without a PAD of its own and is blind to EOS; "
            "train it again with recipes/reward.py"
        )
    tokenizer = load_tokenizer(path, revision=revision, trust_remote_code=trust_remote_code)
    if info.kind == "adapter":
        model = _reward_adapter(info.path, tokenizer, options)
    else:
        name = resolve(path, revision)
        model = _pretrained(AutoModelForSequenceClassification, name, revision, **options)
    model.config.get_text_config().pad_token_id = info.pad_token_id
    return Loaded(model.eval(), tokenizer)


def _reward_adapter(
    folder: Path, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> PreTrainedModel:
    from peft import PeftModel

    adapter = read_json(folder / "adapter_config.json")
    base = _causal(adapter["base_model_name_or_path"], adapter.get("revision"), **options)
    model = _under_head(_fit(base, tokenizer))
    with quiet_peft():
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    own = folder / "config.json"
    model.config.score_offset = read_json(own).get("score_offset", 0.0) if own.is_file() else 0.0
    return model


def _under_head(policy: PreTrainedModel) -> PreTrainedModel:
    """The backbone of a causal model, not copied, inside its sequence-classification class."""
    import torch
    from transformers import AutoModelForSequenceClassification

    values = {**policy.config.to_dict(), "id2label": {0: "score"}, "label2id": {"score": 0}}
    config = type(policy.config).from_dict(values)
    config._name_or_path = policy.name_or_path
    config._attn_implementation = policy.config._attn_implementation
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    except ValueError as error:
        raise CheckpointError(
            f"{type(policy).__name__} has no sequence-classification class in transformers, so no "
            "reward model can be made of it; give another base"
        ) from error
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise CheckpointError(
            f"{type(model).__name__} has no scalar head over the last token, so no reward model "
            "can be made of it; give another base"
        )
    backbone = policy.base_model
    backbone.config = config
    setattr(model, model.base_model_prefix, backbone)
    model.score = torch.nn.Linear(model.score.in_features, 1, bias=False, dtype=policy.dtype)
    model.name_or_path = policy.name_or_path
    for attribute in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(policy, attribute):
            setattr(model, attribute, getattr(policy, attribute))
    return model
