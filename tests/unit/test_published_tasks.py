"""The published tasks: every YAML builds, its items are whole, its prompt is the standard one."""

import logging

import pytest

from align import paths
from align.errors import DataError
from align.evaluation import datasets, floors, hub_datasets, suites
from align.evaluation.scorers import common, multiple_choice, stereoset, winobias, worked_answer

ON_HAND = {
    "mmlu": 14042,
    "arc_easy": 2365,
    "arc_challenge": 1165,
    "piqa": 1838,
    "winogrande": 1267,
    "boolq": 3270,
    "openbookqa": 500,
    "copa": 100,
    "lambada": 5153,
    "truthfulqa_mc1": 817,
    "truthfulqa_mc2": 817,
    "gsm8k": 1319,
    "bbq": 9180,
    "bbq_generate": 9180,
    "crows_pairs": 1508,
    "winobias": 3168,
    "realtoxicityprompts": 2396,
    "xstest": 450,
}
HUB_ONLY = {"stereoset", "winogender", "bold", "hellaswag", "bbh"}
HUB_ONLY |= {"simplesafetytests", "donotanswer"}


@pytest.fixture(scope="module")
def built(align_data):
    """Tasks, each built once."""
    logging.disable(logging.WARNING)
    known = suites.task_files()
    made = {}

    def build(name, num_fewshot=0):
        key = (name, num_fewshot)
        if key not in made:
            file = suites.TaskFile(name, known[name])
            made[key] = suites.build(file, chat=False, num_fewshot=num_fewshot)
        return made[key]

    yield build
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(ON_HAND.keys() | HUB_ONLY))
def test_every_task_has_a_readme_with_a_version_log_and_meanings(name):
    from lm_eval.tasks._yaml_loader import load_yaml

    path = suites.task_files()[name]
    readme = (path.parent / "README.md").read_text()
    for heading in ("## Numbers", "## Known criticism", "## Data", "## Versions"):
        assert heading in readme
    config = load_yaml(path, resolve_func=False)
    assert f"- {config['metadata']['version']}:" in readme
    assert all(m.get("meaning") and "higher_is_better" in m for m in config["metric_list"])


def test_every_published_suite_task_exists():
    import yaml

    known = suites.task_files()
    for path in (paths.EVALS / "suites").glob("*.yaml"):
        for name in yaml.safe_load(path.read_text())["tasks"]:
            assert name in known, f"{path.name} names {name}"


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmlu", "arc_easy", "gsm8k", "winobias", "xstest", "lambada"])
def test_tasks_build_with_all_their_items(built, name):
    task = built(name)
    assert len(task.eval_docs) == ON_HAND[name]
    ids = [doc["id"] for doc in task.eval_docs]
    assert len(set(ids)) == len(ids)


@pytest.mark.data
def test_mmlu_five_shot_is_the_authors_prompt(built):
    task = built("mmlu", 5)
    doc = next(d for d in task.eval_docs if d["subject"] == "world religions")
    prompt = task.fewshot_context(doc, num_fewshot=5)
    head = "The following are multiple choice questions (with answers) about world religions.\n\n"
    assert prompt.startswith(head)
    shots = prompt[len(head) :].split("\n\n")
    assert len(shots) == 6
    assert all(shot.rpartition("Answer:")[2].strip() in tuple("ABCD") for shot in shots[:5])
    assert shots[5].endswith("\nAnswer:")
    dev = datasets.mmlu_worked_examples(None)
    own = [d["question"].strip() for d in dev if d["subject"] == doc["subject"]]
    assert [shot.split("\nA. ")[0] for shot in shots[:5]] == own


@pytest.mark.data
def test_gsm8k_worked_examples_end_in_the_answer_without_calculator_marks(built):
    task = built("gsm8k", 2)
    doc = task.eval_docs[0]
    prompt = task.fewshot_context(doc, num_fewshot=2)
    assert "<<" not in prompt
    assert prompt.count("\n#### ") == 2
    scores = worked_answer.item(doc, [f"So.\n#### {doc['answer']}"])
    assert scores["exact_match"] == scores["flexible_match"] == 1


@pytest.mark.data
def test_truthfulqa_prompt_is_lm_evals(built):
    prompt = datasets.truthfulqa_prompt({"question": "Is it?"})
    assert prompt.count("\n\nQ: ") == 6
    assert prompt.startswith("Q: ")
    assert prompt.endswith("\n\nQ: Is it?\nA:")


@pytest.mark.data
def test_winobias_pairs_are_complete(built):
    docs = list(built("winobias").eval_docs)
    assert all(len(d["choices"]) == 2 for d in docs)
    conditions = {}
    for doc in docs:
        conditions.setdefault(doc["cluster"], set()).add(doc["condition"])
    assert all(found == {"pro", "anti"} for found in conditions.values())
    assert 0.4 < sum(d["label"] for d in docs) / len(docs) < 0.6


@pytest.mark.data
@pytest.mark.parametrize("name", ["arc_challenge", "winobias", "copa", "truthfulqa_mc2"])
def test_a_random_scorer_gets_chance(built, name):
    row = floors.random_row(name, built(name))
    assert row["ok"], row


@pytest.mark.data
def test_a_leaked_label_is_not_chance(built):
    class Leaky:
        """A task that credits the first choice, which winners always take."""

        eval_docs = built("copa").eval_docs

        def doc_to_choice(self, doc):
            return ["a", "b"]

        def process_results(self, doc, results):
            return {"acc": 1.0}

    assert not floors.random_row("leaky", Leaky())["ok"]


@pytest.mark.parametrize("name", ["bbq", "mmlu", "gsm8k"])
def test_missing_data_are_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_DATA", str(tmp_path))
    file = suites.TaskFile(name, suites.task_files()[name])
    with pytest.raises(suites.MissingData, match=name):
        suites.build(file, chat=False, num_fewshot=0)


@pytest.mark.parametrize("name", sorted(HUB_ONLY))
def test_sets_of_the_hub_say_how_to_get_them(name, monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=rf"not in the .* cache.*align data pull {name}`"):
        getattr(hub_datasets, name)()


def test_winobias_gap_and_its_test():
    rows = []
    for i in range(40):
        for condition in ("pro", "anti"):
            right = 1.0 if condition == "pro" or i % 2 else 0.0
            meta = {"kind": "type1", "condition": condition}
            scores = {"accuracy": right, f"accuracy_{condition}_type1": right}
            rows.append({"id": f"{condition}{i}", "cluster": i, "scores": scores, "meta": meta})
    found = winobias.metrics(rows)
    assert found["gap_type1"].value == pytest.approx(0.5)
    assert found["gap_type1_p"].value < 0.001
    assert found["gap_type1"].ci95[0] > 0.2
    assert found["gap_type2"].value is None


def test_a_gap_that_may_be_zero_has_an_interval_from_zero():
    assert winobias._folded((-0.1, 0.3)) == (0.0, 0.3)
    assert winobias._folded((-0.3, -0.1)) == (0.1, 0.3)


def test_stereoset_icat_corners():
    assert stereoset.icat(50, 100) == 100
    assert stereoset.icat(100, 100) == 0
    assert stereoset.icat(0, 100) == 0
    assert stereoset.icat(50, 0) == 0


def test_stereoset_averages_over_terms_not_items():
    made = [("nurse", -1, -2, -3)] * 3 + [("chess", -2, -1, -3)]
    scored = [stereoset.score(*values) for _, *values in made]
    terms = [term for term, *_ in made]
    columns = [[s[n] for s in scored] for n in ("stereotype_preferred", "related_preferred")]
    assert stereoset.shares(terms, *columns) == (50, 100, 100)
    rows = [
        {"id": i, "cluster": t, "scores": s, "meta": {"target": t}}
        for i, (t, s) in enumerate(zip(terms, scored, strict=True))
    ]
    found = stereoset.metrics(rows)
    assert (found["ss"].value, found["lms"].value, found["icat"].value) == (50, 100, 100)


def test_truthfulqa_mc2_is_a_share_of_probability():
    assert multiple_choice.true_probability([0.0, 0.0, 0.0, 0.0], 1) == 0.25
    assert multiple_choice.true_probability([-1000.0, -1000.0], 1) == 0.5
    assert multiple_choice.true_probability([0.0, -50.0], 1) == pytest.approx(1)


def test_mmlu_mean_of_subjects_counts_subjects_alike():
    rows = [
        {"id": i, "scores": {"acc": float(i > 5)}, "meta": {"subject": "a b" if i < 8 else "c"}}
        for i in range(10)
    ]
    found = multiple_choice.by_subject(rows)
    assert found["acc_a_b"].value == 0.25
    assert found["acc_mean_of_subjects"].value == pytest.approx((0.25 + 1) / 2)


def test_mean_of_what_is_scored():
    assert common.mean([1.0, None, float("nan"), 0.0]) == 0.5
    assert common.mean([]) != common.mean([])


@pytest.mark.data
@pytest.mark.slow
def test_the_tasks_work_under_plain_lm_eval(align_data):
    import lm_eval
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    names = ["bbq", "copa", "crows_pairs", "truthfulqa_mc2", "xstest"]
    found = lm_eval.simple_evaluate(
        model="dummy",
        tasks=names,
        limit=8,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(paths.EVALS), include_defaults=False),
    )["results"]
    logging.disable(logging.NOTSET)
    assert set(found) == set(names)
    assert 0 <= found["bbq"]["accuracy_ambiguous,none"] <= 1
    assert 0 <= found["crows_pairs"]["stereotype_preference_causal,none"] <= 1
