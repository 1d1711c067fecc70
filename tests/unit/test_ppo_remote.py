"""Scores and completions that come over HTTP, from servers on 127.0.0.1."""

import itertools
import json
import socket
import time
from dataclasses import replace

import ppo_tiny
import pytest
import servers
import torch

from align import checkpoint, preflight
from align.errors import ConfigError, RunError
from align.ppo import remote, vllm
from align.ppo.build import build_networks, build_rewards
from align.ppo.rewards import url_scorer

RECORDS = ppo_tiny.RECORDS[:2]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(remote, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def score(url: str, *, timeout: float = 5.0, retries: int = 3) -> torch.Tensor:
    return url_scorer(url, timeout, retries)(RECORDS, ["yes", "no"], [True, False])


def always(status: int, value):
    return lambda method, path, body: (status, value)


# ---------------------------------------------------------------- a scorer


def test_a_remote_scorer_gets_prompts_and_completions_and_its_numbers_count(monkeypatch):
    monkeypatch.delenv("ALIGN_REWARD_TOKEN", raising=False)
    with servers.serve(always(200, {"scores": [1, -0.5]})) as seen:
        assert score(seen.url + "/score").tolist() == [1.0, -0.5]
    (request,) = seen
    assert (request["method"], request["path"]) == ("POST", "/score")
    prompts = [record["prompt"] for record in RECORDS]
    want = {"prompts": prompts, "completions": ["yes", "no"], "ended": [True, False]}
    assert request["body"] == want
    assert "Authorization" not in request["headers"]


def test_the_token_comes_from_the_environment_and_stays_out_of_files(monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_REWARD_TOKEN", "hush")
    with servers.serve(lambda m, p, body: (200, {"scores": [0.0] * len(body["prompts"])})) as seen:
        settings = ppo_tiny.config(
            tmp_path, reward_functions=None, reward_url=seen.url, total_episodes=8
        )
        trainer = ppo_tiny.trainer(settings)
        trainer.reward = build_rewards(settings)
        trainer.train()
        trainer.finish(lambda folder: None)
    assert seen[0]["headers"]["Authorization"] == "Bearer hush"
    assert trainer.evidence()["reward_url"] == seen.url
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hush" not in path.read_bytes(), path


def test_two_times_503_and_then_an_answer():
    answers = iter([(503, b"busy"), (503, b"busy"), (200, {"scores": [1.0, 2.0]})])
    with servers.serve(lambda *request: next(answers)) as seen:
        assert score(seen.url).tolist() == [1.0, 2.0]
    assert len(seen) == 3


def test_the_waits_between_attempts_double(monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    with servers.serve(always(500, b"")) as seen, pytest.raises(RunError, match="4 attempts"):
        score(seen.url)
    assert waits == [0.01, 0.02, 0.04] and len(seen) == 4


def test_a_scorer_that_hangs_is_asked_again_and_then_named():
    def hangs(*request):
        time.sleep(0.5)
        return 200, {"scores": [0.0, 0.0]}

    with (
        servers.serve(hangs) as seen,
        pytest.raises(
            RunError, match=rf"{seen.url} gave no answer within 0\.1 s, 2 attempts;.*log"
        ),
    ):
        score(seen.url, timeout=0.1, retries=1)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "status, value, message",
    [
        (400, b"bad prompts", r"answered 400 Bad Request \(bad prompts\); look at the log"),
        (401, b"", "answered 401 Unauthorized; look"),
        (302, b"", "answered 302 Found; look"),
        (200, b"<html>", "answered '<html>', which is not JSON"),
        (200, b"\xff\xfe", "which is not JSON"),
        (200, b"", r"answered None; it must answer an object with scores"),
        (200, [1.0, 2.0], r"answered \[1.0, 2.0\]; it must answer an object with scores"),
        (200, {"scores": [1.0]}, r"scores of shape \(1,\) for 2 completions"),
        (200, b'{"scores": [1.0, NaN]}', "returned nan for 1 of 2 completions, first for 'no'"),
        (200, {"scores": [1.0, None]}, "not a list of numbers"),
        (200, {"scores": ["a", "b"]}, "not a list of numbers"),
    ],
)
def test_an_answer_that_will_not_become_right_is_final(status, value, message):
    with (
        servers.serve(always(status, value)) as seen,
        pytest.raises(RunError, match=message) as caught,
    ):
        score(seen.url)
    assert len(seen) == 1 and seen.url in str(caught.value)


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(RunError, match=rf"{url} can't be reached \(.*refused\), 2 attempts; look"):
        score(url, retries=1)


def test_an_answer_that_breaks_off_is_asked_for_again():
    """Fewer bytes than announced are no answer, even where they are JSON."""
    listener = socket.create_server(("127.0.0.1", 0))
    whole = b'HTTP/1.0 200 OK\r\nContent-Length: 18\r\n\r\n{"scores": [1, 2]}'
    port = listener.getsockname()[1]

    def answer():
        for content in (whole[:-3], whole):
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(content)

    import threading

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert score(f"http://127.0.0.1:{port}").tolist() == [1.0, 2.0]
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    "url, why",
    [
        ("127.0.0.1:8000", "must begin with http:// or https://"),
        ("ftp://host/x", "must begin with http:// or https://"),
        ("http://", "it names no host"),
        ("http:///score", "it names no host"),
        ("http://host:99999/", "it can't be read"),
        ("http://ho st/", "it holds a space"),
        ("http://[::1/", "it can't be read"),
        ("http://me:hush@host/", r"reward_url is \(not shown\); it holds a password"),
        ("", "must begin with http:// or https://"),
    ],
)
def test_a_bad_address_is_found_before_anything_is_loaded(tmp_path, url, why):
    settings = ppo_tiny.config(tmp_path)
    settings.reward_url = url
    with pytest.raises(ConfigError, match=f"{why}.*give one like"):
        preflight.check_values(settings)
    settings.reward_url = "https://scorer.example:8443/score?model=a"
    preflight.check_values(settings)


# ---------------------------------------------------------------- a server that samples


def via_server(folder, url: str, **options):
    return ppo_tiny.config(
        folder, **{"rollout": "vllm", "vllm_url": url, "num_ppo_epochs": 1, **options}
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", [False, True])
def test_the_server_samples_with_the_weights_of_each_rollout(tmp_path, lora, monkeypatch):
    monkeypatch.setenv("ALIGN_VLLM_TOKEN", "key")
    engine = servers.TinyVLLM(ppo_tiny.llama(seed=9))  # other weights, until it is sent ours
    with servers.serve(engine) as seen:
        settings = via_server(
            tmp_path, seen.url, use_peft=lora, learning_rate=1e-2, total_episodes=24
        )
        trainer = ppo_tiny.trainer(settings)
        trainer.train()
    assert len(engine.loads) == 5  # three rollouts, held-out prompts at the start and the end
    assert {str((tmp_path / "vllm_weights").resolve())} == set(engine.loads)
    assert not (tmp_path / "vllm_weights").exists()
    for line in (m for m in lines(tmp_path) if "score" in m):
        assert line["importance_mean"] == pytest.approx(1, abs=1e-4)
        assert line["sampler_kl"] == pytest.approx(0, abs=1e-5)
        assert line["ratio_mean"] == pytest.approx(1, abs=1e-4)
    asked = [s for s in seen if s["path"] == "/v1/completions"]
    assert len({s["body"]["seed"] for s in asked}) == 24 + 3  # the held-out ones stay the same
    assert all(s["headers"]["Authorization"] == "Bearer key" for s in seen)


def test_merged_weights_are_those_of_base_and_adapter_and_nothing_is_changed(tmp_path):
    settings = ppo_tiny.config(tmp_path, use_peft=True)
    policy = build_networks(settings, ppo_tiny.llama(), ppo_tiny.tokenizer()).policy
    for name, parameter in policy.named_parameters():
        if "lora_B.default" in name:
            parameter.data.normal_(std=0.2)
        if "lora_B.value" in name:
            parameter.data.normal_(std=5.0)  # must not come in
    ids = torch.tensor([[5, 6, 7, 8]])
    before = {n: p.clone() for n, p in policy.state_dict().items()}
    want = policy(ids).logits
    plain = ppo_tiny.llama(seed=3)
    plain.load_state_dict(vllm.merged_state(policy))
    torch.testing.assert_close(plain(ids).logits, want, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[n], p) for n, p in policy.state_dict().items())


def test_tokens_of_an_engine_that_differs_are_weighed_and_the_weight_is_capped(tmp_path):
    """Truncated importance sampling reaches the gradient: cap 1e-6 leaves nothing to learn."""
    moved = {}
    for cap in (1e-6, 2.0):
        with servers.serve(servers.TinyVLLM(ppo_tiny.llama(), skew=0.7)) as seen:
            folder = tmp_path / str(cap)
            settings = via_server(
                folder, seen.url, importance_cap=cap, total_episodes=8, kl_coef=0.0, vf_coef=1e-9
            )
            trainer = ppo_tiny.trainer(settings)
            seen_batches = []
            learn = trainer.learner.learn
            trainer.learner.learn = lambda b, p, s=seen_batches, f=learn: (s.append(b), f(b, p))[1]
            trainer.train()
            (batch,) = seen_batches
            line = next(m for m in lines(folder) if "score" in m)
            assert line["importance_max"] > 1.2 and line["sampler_kl"] > 0.01
            moved[cap] = line["grad_norm"], batch
    assert moved[1e-6][0] < 1e-4 * moved[2.0][0]
    batch = moved[2.0][1]
    mask = batch.rollout.mask
    ratio = (batch.rollout.logprobs - batch.rollout.sampler_logprobs).exp().clamp(max=2.0)
    plain = batch.advantages[mask] / ratio[mask]
    assert plain.mean().abs() < 1e-4 and plain.std() == pytest.approx(1, abs=0.02)


def test_rows_have_their_own_random_numbers_and_stop_at_stop_tokens():
    stops = [1, 7, 8, 9, 10, 11]
    with servers.serve(servers.TinyVLLM(ppo_tiny.llama())) as seen:
        server = vllm.Server(seen.url, "tiny", 5.0)
        out = vllm.complete(
            server, [[5, 6]] * 12, range(12), at_once=4, longest=6, temperature=1.0,
            eos_token_ids=stops, pad_token_id=0, device="cpu",
        )  # fmt: skip
    assert len({tuple(row) for row in out.ids.tolist()}) > 6
    assert out.ended.any() and not out.ended.all()
    for ids, mask, ended, logprobs in zip(*out, strict=True):
        n = int(mask.sum())
        assert (ids[n:] == 0).all() and not mask[n:].any() and (logprobs[n:] == 0).all()
        assert bool(ended) == (int(ids[n - 1]) in stops) and (ended or n == 6)
        assert not set(ids[: n - 1].tolist()) & set(stops)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(logprobs=None), "no token ids with their log-probabilities"),
        (lambda c: c.update(token_ids=None), "no token ids with their log-probabilities"),
        (lambda c: c["logprobs"]["token_logprobs"].pop(), "log-probabilities for"),
        (lambda c: c.update(token_ids=[5], logprobs={"token_logprobs": [-1.0]}), "is no EOS of"),
        (
            lambda c: c.update(token_ids=[], logprobs={"token_logprobs": []}),
            "0 tokens where 1 to 8",
        ),
        (
            lambda c: c["logprobs"].update(token_logprobs=[float("nan")] * len(c["token_ids"])),
            "not finite",
        ),
    ],
)
def test_samples_that_could_not_be_corrected_are_refused(tmp_path, change, message):
    engine = servers.TinyVLLM(ppo_tiny.llama())
    engine.change = change
    with servers.serve(engine) as seen, pytest.raises(RunError, match=message):
        ppo_tiny.trainer(via_server(tmp_path, seen.url)).train()


def test_log_probabilities_without_the_temperature_are_refused(tmp_path):
    engine = servers.TinyVLLM(ppo_tiny.llama(), mode="raw_logprobs")
    with servers.serve(engine) as seen:
        ppo_tiny.trainer(via_server(tmp_path, seen.url))
        with pytest.raises(RunError, match="raw_logprobs log-probabilities, which leave out the"):
            ppo_tiny.trainer(via_server(tmp_path, seen.url, temperature=0.7))


def test_a_server_out_of_development_mode_is_named_with_its_command(tmp_path):
    engine = servers.TinyVLLM(ppo_tiny.llama())

    def plain(method, path, body):
        closed = path == "/collective_rpc"
        return (404, {"detail": "Not Found"}) if closed else engine(method, path, body)

    with (
        servers.serve(plain) as seen,
        pytest.raises(RunError, match=r"collective_rpc answered 404.*VLLM_SERVER_DEV_MODE=1 vllm"),
    ):
        ppo_tiny.trainer(via_server(tmp_path, seen.url)).train()
    assert not (tmp_path / "vllm_weights").exists()


def test_something_else_than_vllm_and_nothing_at_all(tmp_path):
    with (
        servers.serve(always(200, {"hello": 1})) as seen,
        pytest.raises(RunError, match="which names no model; vllm_url must be a vLLM server"),
    ):
        ppo_tiny.trainer(via_server(tmp_path, seen.url))
    with pytest.raises(RunError, match=r"can't be reached.*4 attempts; look at the log of the ser"):
        ppo_tiny.trainer(via_server(tmp_path, seen.url))


def test_a_server_that_dies_in_the_middle_leaves_a_checkpoint_to_go_on_from(tmp_path):
    engine = servers.TinyVLLM(ppo_tiny.llama())
    calls = itertools.count()

    def dies(method, path, body):
        gone = path == "/v1/completions" and next(calls) > 3 + 8
        return (500, b"EngineDeadError") if gone else engine(method, path, body)

    with (
        servers.serve(dies) as seen,
        pytest.raises(RunError, match=r"answered 500 .*\(EngineDeadError\), 4 attempts"),
    ):
        ppo_tiny.trainer(via_server(tmp_path, seen.url, save_steps=1)).train()
    assert checkpoint.newest_complete(tmp_path).name == "checkpoint-1"
    with servers.serve(servers.TinyVLLM(ppo_tiny.llama())) as seen:  # elsewhere
        settings = via_server(tmp_path, seen.url, save_steps=1, resume=True)
        assert checkpoint.output_state(tmp_path, settings).differs == ()
        resumed = ppo_tiny.trainer(settings)
        resumed.train()
    assert resumed.progress.rollout == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rollout": "vllm"}, "rollout is vllm and vllm_url is None; a vLLM server needs"),
        ({"vllm_url": "http://h"}, "rollout is local and vllm_url is http://h; a vLLM"),
        (
            {"rollout": "vllm", "vllm_url": "http://h", "load_in_4bit": True, "use_peft": True},
            "load_in_4bit holds them in 4 bits",
        ),
        ({"importance_cap": 0.0}, "importance_cap is 0.0; it must be above 0"),
        ({"reward_functions": None}, "give reward_model or reward_functions or reward_url"),
    ],
)
def test_settings_that_exclude_each_other(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        ppo_tiny.config(tmp_path, **change)


def test_the_form_of_vllm_url_is_checked_before_anything_is_loaded(tmp_path):
    settings = replace(ppo_tiny.config(tmp_path), rollout="vllm", vllm_url="localhost:8000")
    with pytest.raises(ConfigError, match="vllm_url is localhost:8000; it must begin with http"):
        preflight.check_values(settings)
