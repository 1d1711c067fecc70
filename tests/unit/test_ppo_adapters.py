"""One backbone for policy, value model, reward model and reference, on merged and unmerged SFT."""

import copy
import json
import shutil
from pathlib import Path

import ppo_tiny
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from align import checkpoint
from align.config import PPOStage, SFTStage
from align.ppo import adapters, build_networks, build_rewards, models
from align.ppo.accelerator import enable_checkpointing
from align.ppo.adapters import SharedScorer
from align.ppo.models import Networks, Sequences, policy_stats
from align.scoring import RewardScorer

PROMPTS = ["how many", "has Tom two apples", "?"]
REPLIES = ["The answer is 3.", "No", "he gave three apples now"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """``whole``: an SFT model. ``adapter``: one as an adapter of a base without PAD.
    ``whole-reward``, ``adapter-reward``: reward adapters of each.
    """
    folder = tmp_path_factory.mktemp("world")
    tiny.checkpoint(folder / "whole", template=tiny.PLAIN, tie_word_embeddings=False)
    tiny.checkpoint(folder / "base", pad=None, template=tiny.PLAIN)
    tokenizer = checkpoint.load_tokenizer(str(folder / "base"))
    stage = SFTStage(**ppo_tiny.STAGE, model_name_or_path=str(folder / "base"))
    with checkpoint.quiet_peft():
        model = checkpoint.load_policy(stage, tokenizer)
        model = ppo_tiny.get_peft_model(model, checkpoint.lora_config(stage, "CAUSAL_LM", model))
        checkpoint.write_model(folder / "adapter", ppo_tiny.random_adapter(model, 1), tokenizer)
    for parent in ("whole", "adapter"):
        ppo_tiny.reward_adapter(folder / f"{parent}-reward", folder / parent)
    return folder


def config(world: Path, parent: str, reward: str | None = None, **changes) -> PPOStage:
    return ppo_tiny.config(
        world / "out",
        model_name_or_path=str(world / parent),
        reward_model=str(world / (reward or f"{parent}-reward")),
        reward_functions=None,
        **{**ppo_tiny.LORA, "lora_r": 2, **changes},
    )


def built(settings: PPOStage):
    tokenizer = checkpoint.load_tokenizer(settings.model_name_or_path)
    reward = build_rewards(settings)
    lm = checkpoint.load_policy(settings, tokenizer)
    plain = copy.deepcopy(lm)
    return build_networks(settings, lm, tokenizer, reward), reward, plain


def scores(reward) -> torch.Tensor:
    return reward([{"prompt": p} for p in PROMPTS], REPLIES, [True, False, True]).total


def some_sequences(networks: Networks) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (3, 9), generator=generator)
    return Sequences(ids, torch.tensor([3, 2, 5]), torch.tensor([6, 5, 2]))


@pytest.mark.parametrize("parent", ["whole", "adapter"])
def test_scores_on_the_shared_backbone_are_those_of_the_reward_model_alone(world, parent, capsys):
    networks, reward, _ = built(config(world, parent))
    assert "one adapter more on the policy's backbone" in capsys.readouterr().err
    alone = RewardScorer.load(str(world / f"{parent}-reward"), device="cpu")
    want = alone(PROMPTS, REPLIES, [True, False, True])
    torch.testing.assert_close(scores(reward), want, atol=1e-5, rtol=1e-5)
    networks("value", some_sequences(networks))  # another adapter in between
    torch.testing.assert_close(scores(reward), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parent", ["whole", "adapter"])
def test_the_reference_is_the_sft_model_bit_for_bit(world, parent):
    networks, reward, sft = built(config(world, parent))
    ppo_tiny.random_adapter(networks, 5)
    scores(reward)
    rows = some_sequences(networks)
    got = networks("reference", rows).logprobs
    with torch.no_grad():
        assert torch.equal(got, policy_stats(sft, rows, 1.0, False).logprobs)
        assert not torch.equal(got, networks("policy", rows).logprobs)
    if parent == "adapter":
        base = checkpoint.load_causal(str(world / "base")).model
        assert not torch.allclose(got, policy_stats(base, rows, 1.0, False).logprobs, atol=1e-3)


@pytest.mark.parametrize("parent", ["whole", "adapter"])
def test_values_start_as_the_reward_models_scores(world, parent):
    networks, _, _ = built(config(world, parent))
    alone = RewardScorer.load(str(world / f"{parent}-reward"), device="cpu")
    (row,) = alone.encode(["how many"], ["two apples"])
    for n in (len(row), len(row) - 3):
        rows = Sequences(torch.tensor([row[:n]]), torch.tensor([n - 1]), torch.tensor([1]))
        value = networks("value", rows, extra=1)[-1]
        torch.testing.assert_close(value, alone.score_ids([row[:n]])[0], atol=1e-4, rtol=1e-4)


def test_there_is_one_backbone_and_only_policy_and_value_learn(world):
    networks, reward, sft = built(config(world, "whole"))
    scores(reward)
    frozen = sum(p.numel() for n, p in networks.named_parameters() if "lora_" not in n)
    heads = 2 * (32 + 1)
    assert frozen == sum(p.numel() for p in sft.parameters()) + heads
    held = {id(p) for p in networks.parameters()}
    model = reward.scorers["reward_model"][1].scorer.model  # no weights of its own
    assert model.networks is networks and {id(p) for p in model.networks.parameters()} == held
    trained = [n for n, p in networks.named_parameters() if p.requires_grad]
    assert trained and not any(".reward." in n or "reward_head" in n for n in trained)
    assert {".default." in n for n in trained if "lora_" in n} == {True, False}
    ranks = {a: c.r for a, c in networks.policy.peft_config.items()}
    assert ranks == {"default": 2, "value": 4, "reward": 4}


def test_gradient_checkpointing_gives_the_same_gradients_beside_a_reward_adapter(world):
    found = []
    for recompute in (False, True):
        networks, reward, _ = built(config(world, "whole"))
        ppo_tiny.random_adapter(networks, 5)
        networks.train()
        if recompute:
            enable_checkpointing(networks)
        rows = some_sequences(networks)
        networks("value", rows).sum().backward()
        scores(reward)
        networks("policy", rows).logprobs.sum().backward()
        found.append({n: p.grad for n, p in networks.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert not any(".reward." in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5)


def test_the_checkpoint_holds_the_policys_adapter_alone(world, tmp_path):
    networks, _, _ = built(config(world, "whole"))
    models.write_policy(tmp_path, networks.policy, checkpoint.load_tokenizer(str(world / "whole")))
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert names and all(w.shape[0] == 2 or w.shape[1] == 2 for w in names.values())  # rank 2


# ---------------------------------------------------------------- where it does not fit


def test_a_copy_of_the_parent_elsewhere_is_the_same_backbone(world, tmp_path):
    for parent in ("whole", "adapter"):
        shutil.copytree(world / parent, tmp_path / parent)
        settings = config(world, parent, reward=f"{parent}-reward")
        settings.model_name_or_path = str(tmp_path / parent)
        assert isinstance(build_rewards(settings).scorers["reward_model"][1], SharedScorer)


def test_what_does_not_fit_is_loaded_beside_the_backbone_and_says_why(world, tmp_path, capsys):
    tiny.checkpoint(tmp_path / "other", template=tiny.PLAIN, seed=9)
    ppo_tiny.reward_adapter(tmp_path / "stranger", tmp_path / "other")
    shutil.copytree(world / "whole-reward", tmp_path / "words")
    tokenizer = checkpoint.load_tokenizer(str(tmp_path / "words"))
    tokenizer.add_tokens(["apples!"])
    tokenizer.save_pretrained(tmp_path / "words")
    shutil.copytree(world / "whole-reward", tmp_path / "embedding")
    file = tmp_path / "embedding/adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.weight"
    save_file({**load_file(file), name: torch.zeros(3)}, file)
    shutil.copytree(world / "whole-reward", tmp_path / "four")
    lineage = {"config": {"load_in_4bit": True}}
    (tmp_path / "four/lineage.json").write_text(json.dumps(lineage))
    for reward, why in {
        "stranger": f"it is an adapter of {tmp_path / 'other'}, not of",
        "words": "its tokenizer has another vocabulary",
        "embedding": "it holds other weights than LoRA's and a scalar head",
        "four": "load_in_4bit was True when it was trained",
    }.items():
        assert adapters.reward_adapter(config(world, "whole", str(tmp_path / reward))) is None
        line = capsys.readouterr().err
        assert line.startswith("reward model: loaded beside the policy's backbone, for ")
        assert why in line and line.count("\n") == 1
    networks, reward, _ = built(config(world, "whole", str(tmp_path / "stranger")))
    assert networks.reward_head is None and scores(reward).isfinite().all()


def test_without_lora_nothing_is_shared_and_nothing_is_said(world, capsys):
    networks, reward, _ = built(config(world, "whole", use_peft=False))
    assert networks.reference is not None and networks.reward_head is None
    assert "reward model:" not in capsys.readouterr().err and scores(reward).isfinite().all()
