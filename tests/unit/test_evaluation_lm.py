"""PrefixLM gives lm-eval's own numbers, whatever it shares and however it batches."""

import random
from typing import Any

import pytest
import torch
from evaluation_helpers import byte_tokenizer, tiny_model
from lm_eval.api.instance import Instance

from align.errors import EvalError, RunError
from align.evaluation import batching, decoding, likelihoods
from align.evaluation.lm import Job, PrefixLM

GREEDY = {"until": ["q"], "max_gen_toks": 24, "do_sample": False}
SAMPLED = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def lm(model) -> PrefixLM:
    return PrefixLM(model, byte_tokenizer(), eos_ids=[1])


@pytest.fixture(scope="module")
def reference(model) -> Any:
    """lm-eval's hf backend on the same model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=4, device="cpu")


def words(rnd: random.Random, n: int) -> str:
    return " ".join(rnd.choice(["red", "fox", "saw", "a", "big", "house"]) for _ in range(n))


def pairs() -> list[tuple[str, str]]:
    """Few-shot prefix, shared contexts, one-token choices, truncation, empty context."""
    rnd = random.Random(0)
    few_shot = words(rnd, 20)
    shared = [
        (f"{few_shot}\n{context}", f" {words(rnd, rnd.randint(1, 3))}{choice}")
        for context in (words(rnd, rnd.randint(2, 9)) for _ in range(12))
        for choice in "abcd"
    ]
    letters = [(f"{few_shot}\n{words(rnd, n)}:", x) for n in (3, 4) for x in "ABCD"]
    long = [(words(rnd, 80), f" {words(rnd, n)}") for n in (1, 2, 3)]
    return [*shared, *letters, *long, ("", " fox"), ("red ", "fox")]


def requests(arguments: list[Any], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, a, 0) for a in arguments]


@pytest.mark.filterwarnings("ignore")
def test_loglikelihoods_equal_those_of_lm_eval(lm, reference) -> None:
    asked = requests(pairs())
    expected = reference.loglikelihood(asked, disable_tqdm=True)
    got = lm.loglikelihood(asked, disable_tqdm=True)
    for (value, greedy), (ours, our_greedy) in zip(expected, got, strict=True):
        assert ours == pytest.approx(value, abs=1e-4)
        assert our_greedy == greedy
    assert lm.truncated == 3


def test_batching_changes_no_digit_and_sharing_next_to_nothing(model, monkeypatch) -> None:
    monkeypatch.setattr(likelihoods, "DIGITS", 12)
    asked = requests(pairs())
    scores = []
    for size in ("auto", 1, 7):
        lm = PrefixLM(model, byte_tokenizer(), eos_ids=[1], batch_size=size)
        scores.append([ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)])
    assert scores[1] == scores[0]
    assert scores[2] == scores[0]
    lm._shares = False
    unshared = [ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    assert unshared == pytest.approx(scores[0], abs=1e-4)


def test_what_is_skipped_changes_no_digit_of_the_rest(model, monkeypatch) -> None:
    monkeypatch.setattr(likelihoods, "DIGITS", 12)
    asked = requests(pairs())
    lm = PrefixLM(model, byte_tokenizer(), eos_ids=[1])
    whole = [ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    wanted = set(random.Random(5).sample([request.args for request in asked], 17))
    lm.skip = lambda kind, request: request not in wanted
    part = [ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    given = [(p, w) for p, w, r in zip(part, whole, asked, strict=True) if r.args in wanted]
    assert len(given) == 17
    assert all(p == w for p, w in given)


def test_lengths_to_pad_to() -> None:
    lengths = [batching.padded_length(n) for n in (1, 4, 5, 9, 16, 17, 33, 700)]
    assert lengths == [4, 4, 8, 16, 16, 32, 48, 704]
    cpu = torch.device("cpu")
    assert len(batching.with_company([(1, 2)] * 3, 4, cpu)) == 4
    assert len(batching.with_company([(1, 2)] * 3, 32, cpu)) == 3
    assert len(batching.with_company([(1, 2)] * 3, 4, torch.device("cuda"))) == 3


@pytest.mark.filterwarnings("ignore")
def test_rolling_loglikelihood_equals_lm_eval(lm, reference) -> None:
    asked = requests([(words(random.Random(1), 90),)], "loglikelihood_rolling")
    expected = reference.loglikelihood_rolling(asked, disable_tqdm=True)
    assert lm.loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_greedy_completions_equal_lm_eval(lm, reference) -> None:
    rnd = random.Random(2)
    asked = requests([(words(rnd, n), dict(GREEDY)) for n in (1, 2, 3, 9, 70, 5)], "generate_until")
    expected = reference.generate_until(asked, disable_tqdm=True)
    assert lm.generate_until(asked, disable_tqdm=True) == expected


@pytest.mark.filterwarnings("ignore")
def test_a_shared_few_shot_prefix_changes_no_completion(lm, reference) -> None:
    rnd = random.Random(3)
    few_shot = words(rnd, 20)
    prompts = [f"{few_shot}\n{words(rnd, n)}" for n in (1, 2, 3, 9, 5, 6)]
    assert decoding.shared_prefix([lm.tok_encode(p) for p in prompts]) > len(few_shot)
    asked = requests([(p, dict(GREEDY)) for p in prompts], "generate_until")
    expected = reference.generate_until(asked, disable_tqdm=True)
    assert lm.generate_until(asked, disable_tqdm=True) == expected


def test_a_sample_does_not_depend_on_batch_order_or_neighbours(model) -> None:
    jobs = [Job(words(random.Random(n), n), SAMPLED, k) for n in (2, 3, 6) for k in range(4)]
    lm = PrefixLM(model, byte_tokenizer(), eos_ids=[1])
    together = lm.generate(jobs)
    assert lm.generate(jobs[::-1])[::-1] == together
    assert [lm.generate([job])[0] for job in jobs] == together
    lm.batches.size = 1
    assert lm.generate(jobs) == together
    assert len(set(together)) > len(jobs) // 2
    other = PrefixLM(model, byte_tokenizer(), eos_ids=[1], seed=1)
    assert other.generate(jobs) != together


def test_requests_repeated_by_lm_eval_get_different_samples(lm) -> None:
    asked = requests([("red fox", SAMPLED)] * 3, "generate_until")
    texts = lm.generate_until(asked)
    assert len(set(texts)) == 3
    assert texts == lm.generate([Job("red fox", SAMPLED, k) for k in range(3)])


def test_every_eos_id_ends_a_completion(model) -> None:
    jobs = [Job("red fox", GREEDY | {"until": []}, 0)]
    free = PrefixLM(model, byte_tokenizer(), eos_ids=[1])
    tokens = free.tok_encode(free.generate(jobs)[0])
    stop = next(t for t in tokens if t not in tokens[:1])
    lm = PrefixLM(model, byte_tokenizer(), eos_ids=[1, stop])
    assert lm.tok_encode(lm.generate(jobs)[0]) == tokens[: tokens.index(stop)]


def test_running_out_of_memory_halves_the_batch(lm, monkeypatch) -> None:
    asked = requests(pairs())
    expected = [ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    forward = lm.forward

    def small(rows, *args, **kwargs):
        if len(rows) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(rows, *args, **kwargs)

    monkeypatch.setattr(lm, "forward", small)
    budget = lm.batches.budget
    got = [ll for ll, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    assert got == pytest.approx(expected, abs=1e-4)
    assert lm.batches.budget < budget


def test_out_of_memory_with_one_row_is_told(lm, monkeypatch) -> None:
    def never(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(lm, "forward", never)
    with pytest.raises(RunError, match="out of memory with the smallest batch"):
        lm.loglikelihood(requests([("a", "b")]), disable_tqdm=True)


def test_other_errors_are_not_taken_for_memory(lm, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(lm, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        lm.loglikelihood(requests([("a", "b")]), disable_tqdm=True)


def test_what_the_loop_does_not_obey_is_refused(lm) -> None:
    with pytest.raises(EvalError, match="'repetition_penalty', which is not obeyed"):
        lm.generate([Job("a", {"until": [], "repetition_penalty": 2.0})])
    with pytest.raises(EvalError, match="500 new tokens, but the model's context is 192"):
        lm.generate([Job("a", {"until": [], "max_gen_toks": 500})])


def test_the_nucleus_and_its_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, 4)
    u = decoding.uniforms(range(20_000), 1)[:, 0]

    def shares(**how: float) -> list[float]:
        settings = decoding.Settings(1, (), **({"temperature": 1.0, "top_p": 1.0} | how))
        tokens = decoding.pick(logits, settings, u)
        return (torch.bincount(tokens, minlength=4) / len(tokens)).tolist()

    assert shares(top_k=0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)
    assert shares(top_p=0.7, top_k=0) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert shares(top_k=1) == [1, 0, 0, 0]
    assert shares(top_p=0.9, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert shares(temperature=0.0, top_k=0) == [1, 0, 0, 0]
    cold = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    expected = (cold / cold.sum()).tolist()
    assert shares(temperature=0.5, top_k=0) == pytest.approx(expected, abs=0.015)


def test_a_draw_is_the_quantile_of_the_whole_vocabulary() -> None:
    vocabulary = 3 * decoding.BLOCK + 41
    logits = torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    u = decoding.uniforms(range(64), 1)[:, 0]
    whole = decoding.Settings(1, (), temperature=1.0, top_p=1.0, top_k=0)
    ends = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    expected = torch.searchsorted(ends, u[:, :1] * ends[:, -1:], right=True)[:, 0]
    assert torch.equal(decoding.pick(logits, whole, u), expected)
    nucleus = whole._replace(top_p=0.9)
    together = decoding.pick(logits, nucleus, u)
    alone = [decoding.pick(logits[i : i + 1], nucleus, u[i : i + 1]) for i in range(64)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-53])
def test_no_draw_is_a_token_without_probability(u) -> None:
    logits = torch.full((3, 2 * decoding.BLOCK + 5), -torch.inf)
    for row, token in enumerate((0, decoding.BLOCK - 1, decoding.BLOCK + 3)):
        logits[row, token] = 0.0
    whole = decoding.Settings(1, (), temperature=1.0, top_p=1.0, top_k=0)
    drawn = decoding.pick(logits, whole, torch.full((3, decoding.TRIES), u, dtype=torch.float64))
    assert drawn.tolist() == [0, decoding.BLOCK - 1, decoding.BLOCK + 3]


def test_many_rows_are_drawn_in_parts_with_the_same_result(monkeypatch) -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    u = decoding.uniforms(range(40), 1)[:, 0]
    how = decoding.Settings(1, (), temperature=0.7, top_p=0.8, top_k=20)
    whole = decoding.pick(logits, how, u)
    monkeypatch.setattr(decoding, "PICKED", 900)
    assert torch.equal(decoding.pick(logits, how, u), whole)


def test_stop_strings_over_several_tokens() -> None:
    stops = decoding.Stops(byte_tokenizer(), frozenset([1]), ("end", "é"))
    tokens = byte_tokenizer().encode("the end.")
    assert [stops(tokens[: i + 1]) for i in range(len(tokens))].index(True) == 6
    assert stops.text(tokens) == "the "
    accent = byte_tokenizer().encode("café")
    assert stops(accent)
    assert stops.text([*accent[:3], 1]) == "caf"
