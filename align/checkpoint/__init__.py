"""Checkpoints: look before loading, load, save so that a kill leaves nothing half-written.

=============  =====================================================================
inspect        what a directory holds, from JSON and safetensors headers; no torch
tokenizer_files  what tokenizer files say; which token is PAD
template       the chat template: which one, and what it writes
load           tokenizer, policy, reward model, adapters
lora           settings of the adapter that a stage trains
save           atomic folders, manifests, models and tokenizers as files
output         the folder of a run: new, to be resumed, finished, or not ours
lineage        where a checkpoint comes from: parent, data, recipe, versions
=============  =====================================================================
"""

from align.checkpoint.inspect import (
    CheckpointInfo,
    inspect_checkpoint,
    is_masked,
    local_folder,
    resolve,
)
from align.checkpoint.lineage import (
    chat_template_sha256,
    inputs,
    read_lineage,
    recipe_sha256,
    weights_sha256,
    write_lineage,
)
from align.checkpoint.load import (
    eos_token_ids,
    load_causal,
    load_policy,
    load_reward_model,
    load_tokenizer,
    new_reward_model,
)
from align.checkpoint.lora import decoder_layers, lora_config, quiet_peft
from align.checkpoint.output import begin_run, finish_run, output_state
from align.checkpoint.save import (
    atomic_dir,
    disk_errors,
    is_complete,
    newest_complete,
    try_saving,
    write_manifest,
    write_model,
)
from align.checkpoint.template import Template, find_template, render_template
from align.checkpoint.tokenizer_files import pad_token

__all__ = [
    "CheckpointInfo",
    "Template",
    "atomic_dir",
    "begin_run",
    "chat_template_sha256",
    "decoder_layers",
    "disk_errors",
    "eos_token_ids",
    "find_template",
    "finish_run",
    "inputs",
    "inspect_checkpoint",
    "is_complete",
    "is_masked",
    "load_causal",
    "load_policy",
    "load_reward_model",
    "load_tokenizer",
    "local_folder",
    "lora_config",
    "new_reward_model",
    "newest_complete",
    "output_state",
    "pad_token",
    "quiet_peft",
    "read_lineage",
    "recipe_sha256",
    "render_template",
    "resolve",
    "try_saving",
    "weights_sha256",
    "write_lineage",
    "write_manifest",
    "write_model",
]
