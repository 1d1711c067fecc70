"""PPO from text prompts (Ziegler 2019, Stiennon 2020, InstructGPT 2022), on plain accelerate.

==============  ================================================================
trainer         the numbered steps of a rollout; read this first
learner         the optimizer steps on one rollout
advantages      KL estimates, rewards, whitening, GAE: pure functions
loss            the losses of policy and value model: pure functions
generate        completions from a policy
vllm            completions from a vLLM server in its place
rollout         completions, scores, log-probabilities and values of a batch
build           from a config to networks and rewards
adapters        all networks as adapters of one backbone
lora            LoRA layers in fewer operations; whole weights for sampling
models          policy, value model and reference, as copies or on one backbone
rewards         reward model, Python functions, a server, weighted sums; checks on them
rules           rewards that need no model: final answer, format, length
remote          JSON over HTTP with retries
control         data order, learning-rate schedule, KL coefficient
attention       float32 attention of bfloat16 networks on a CPU
accelerator     processes, precision, optimizer
sharding        weights in pieces under FSDP2, whole again for sampling and files
state           checkpoints from which a killed run goes on
metrics         what is measured on a rollout
watch           progress bar, metrics.jsonl, trackers, sample completions
==============  ================================================================
"""

from align.ppo.build import build_gold, build_networks, build_rewards
from align.ppo.trainer import PPOTrainer

__all__ = ["PPOTrainer", "build_gold", "build_networks", "build_rewards"]
