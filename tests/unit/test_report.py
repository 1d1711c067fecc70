"""report.html and the tables it shares with the card and the command line."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align import report
from align.errors import EvalError
from align.parsing import load_recipe
from align.report import command, pareto, svg, tables, words
from align.report.load import in_order, load_run
from tests import fake_run


class Strict(HTMLParser):
    """Fails on a tag that is closed in the wrong order or never."""

    VOID = ("meta", "br", "line", "circle", "polyline", "rect", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + " "


def read(html: str) -> str:
    """The visible text of a well-formed page."""
    parser = Strict()
    parser.feed(html)
    assert parser.open == []
    return " ".join(parser.text.split())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "quickstart")


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(run_dir: Path) -> None:
    target = report.write(run_dir)
    html = target.read_text(encoding="utf-8")
    read(html)
    assert target == run_dir.resolve() / "report.html"
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert not re.search(r"\bnan\b|None", html)
    assert "&lt;script&gt;alert(1)" in html  # a completion is shown, not executed


def test_the_page_says_what_was_found(run_dir: Path) -> None:
    text = read(report.write(run_dir).read_text(encoding="utf-8"))
    for wanted in (
        "quickstart_toxicity toxicity_probability (lower is better): better",
        "quickstart_bias stereotype_rate (ideal 0.5): better",
        "quickstart_facts accuracy (higher is better): no difference that can be told",
        "a tax, +0.050 [+0.030, +0.070]",
        "inside its budget of 8.0",
        "3 of 300 items have no score",
        "0.930 [0.890, 0.960]",
        "What stereotype_rate means, in one sentence.",
    ):
        assert wanted in text, wanted


def test_reward_stands_with_its_interval_beside_the_tax_with_its_own(run_dir: Path) -> None:
    drawn = pareto.stages(load_run(run_dir))
    parser = Strict()
    parser.feed(drawn.replace("<td>", " <td>"))
    table = " ".join(parser.text.split())
    assert "1.900 [1.800, 2.000]" in table  # ppo's score
    assert "+1.800 [+1.700, +1.900]" in table  # its gain over sft
    assert "+0.040 [+0.010, +0.070]" in table  # its tax
    assert drawn.count("whisker") == 4  # sft and ppo, both ways
    assert "base 0 (the start) not measured not measured" in table
    assert "0.100 [0.000, 0.200] – 128" in table  # sft is where gains are counted from
    assert pareto.averages(load_run(run_dir)) == ""


def test_a_run_of_only_base_and_sft_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "half"
    fake_run.write_json(run / "sft" / "lineage.json", fake_run.lineage("sft"))
    fake_run.write_json(run / "eval" / "sft" / "results.json", fake_run.results("sft"))
    text = read(report.write(run).read_text(encoding="utf-8"))
    assert "nothing to compare it with" in text
    assert "there is no tax.json" in text
    assert text.count("not measured") >= 4


def test_n_of_one_and_unscored_are_said(tmp_path: Path) -> None:
    results = fake_run.results("base", n=1)
    results["tasks"]["quickstart_facts"]["metrics"]["accuracy"]["value"] = None
    results["missing"] = [{"task": "bbq", "reason": "no file"}]
    fake_run.write_json(tmp_path / "eval" / "base" / "results.json", results)
    text = read(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "no interval · n 1" in text
    assert "unscored n 1" in text
    assert "base: bbq (no file) was not measured." in text


def test_importing_the_report_imports_no_torch() -> None:
    code = "import sys, align.report, align.card, align.plan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------- reading


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="so it is not a run"):
        load_run(tmp_path)
    with pytest.raises(EvalError, match="no run folder at"):
        load_run(tmp_path / "nowhere")


def test_another_schema_and_broken_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "base" / "results.json"
    fake_run.write_json(path, {"schema": 7})
    with pytest.raises(EvalError, match="has schema 7, this version reads 1"):
        load_run(tmp_path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(EvalError, match="is not valid JSON"):
        load_run(tmp_path)


def test_a_line_cut_by_a_kill_is_passed_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path / "run")
    path = run / "sft" / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"step": 3', encoding="utf-8")
    assert len(load_run(run).stages["sft"].curve) == 40
    path.write_text('{"step": \n' + whole, encoding="utf-8")
    with pytest.raises(EvalError, match="line 1 is not valid JSON"):
        load_run(run)


def test_stages_stand_in_the_order_of_the_chain() -> None:
    names = {"ppo", "base_fewshot", "sft", "base", "zeta", "reward"}
    assert in_order(names) == ["base", "base_fewshot", "sft", "reward", "ppo", "zeta"]


# ---------------------------------------------------------------- words and tables


def estimate(value: float, low: float, high: float, **more: object) -> dict[str, object]:
    return {"value": value, "ci95": [low, high], "n": 100, **more}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7, higher_is_better=True), "good"),
        (estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7, higher_is_better=False), "bad"),
        (estimate(0.2, 0.1, 0.3), estimate(0.25, 0.2, 0.4, higher_is_better=True), "plain"),
        (estimate(0.9, 0.85, 0.95), estimate(0.6, 0.55, 0.65, ideal=0.5), "good"),
        (estimate(0.6, 0.55, 0.65), estimate(0.1, 0.05, 0.15, ideal=0.5), "bad"),
        (estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7), "moved"),
        ({"value": 0.1, "ci95": None}, estimate(0.6, 0.5, 0.7, higher_is_better=True), "plain"),
    ],
)
def test_a_change_is_called_only_where_intervals_are_apart(
    before: dict[str, object], after: dict[str, object], verdict: str
) -> None:
    assert words.judge(before, after) == verdict


def test_an_arrow_stands_only_where_a_direction_is_better() -> None:
    table = tables.results_table({"base": fake_run.results("base")})
    by_metric = {row[1]: row[2] for row in table[1:]}
    assert by_metric["exact_match"] == "↑"
    assert by_metric["toxicity_probability"] == "↓"
    assert by_metric["stereotype_rate"] == "ideal 0.5"


def test_a_metric_that_one_stage_lacks_is_not_measured() -> None:
    sft = fake_run.results("sft")
    del sft["tasks"]["quickstart_bias"]
    table = tables.results_table({"base": fake_run.results("base"), "sft": sft})
    row = next(row for row in table if row[0] == "quickstart_bias")
    assert row[-1] == "not measured"


def test_markdown_escapes_and_terminal_aligns() -> None:
    table = [["a", "b"], ["x|y", "1"], ["x|y", "22"]]
    assert tables.markdown(table).splitlines()[2] == "| x\\|y | 1 |"
    lines = tables.terminal(table).splitlines()
    assert lines[3] == "     22" and lines[2] == "x|y  1"


def test_positive_tax_is_a_loss() -> None:
    row = next(r for r in tables.tax_rows(fake_run.TAX) if r.verdict == "tax")
    assert row.lost == pytest.approx(0.05)
    assert row.ci95 == pytest.approx((0.03, 0.07))
    assert row.format_lost == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (0.5123, "0.512"), (48.94, "48.9"), (1234, "1,234"), (-0.25, "−0.250")],
)
def test_numbers_have_the_digits_people_read(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_a_mean_over_tasks_stands_beside_them() -> None:
    overall = {"delta": -0.03, "ci95": [-0.05, -0.01], "n": 500, "verdict": "tax", "sentence": "s."}
    tax = {**fake_run.TAX, "overall": {"sft->ppo": overall}}
    rows = tables.tax_rows(tax)
    assert [r.task for r in rows if r.after == "ppo"][-1] == "mean of tasks"
    assert rows[-1].lost == pytest.approx(0.03) and rows[-1].p_holm is None


def test_the_runs_table_has_main_metrics_tax_and_reward_model(run_dir: Path) -> None:
    fake_run.write_json(run_dir / "eval" / "reward" / "results.json", reward_results())
    text = tables.run_table(run_dir)
    head = text.splitlines()[0].split()
    assert head == ["task", "metric", "better", "base", "sft", "ppo"]  # no column for the scorer
    assert "exact_match_1step" in text and "expected_max_toxicity" not in text
    assert "reward model, held-out accuracy: 0.930" in text
    assert "a tax, +0.050" in text
    page = read(report.write(run_dir).read_text(encoding="utf-8"))
    assert "quickstart_preferences" in page.split("Calibration")[0].split("Reward model")[-1]
    (run_dir / "eval" / "reward" / "results.json").unlink()


def reward_results() -> dict[str, object]:
    results = fake_run.results("sft")
    task = results["tasks"].pop("quickstart_facts")
    task["metrics"] = {"accuracy": fake_run.metric("accuracy", 0.93)}
    return {**results, "tasks": {"quickstart_preferences": task}}


# ---------------------------------------------------------------- doing it again


def recipe_of(name: str) -> dict[str, object]:
    stages = {s: asdict(c) for s, c in load_recipe(name, {}).items()}
    return {"name": name, "align": "0", "stages": stages}


def test_a_shipped_recipe_is_done_again_by_one_command() -> None:
    recipe = recipe_of("quickstart")
    assert command.run_again(recipe) == "align run quickstart"
    stages = recipe["stages"]
    assert isinstance(stages, dict)
    stages["sft"]["output_dir"] = "/elsewhere/sft"
    stages["sft"]["learning_rate"] = 5e-4
    stages["eval"]["suites"] = ["bias", "toxicity"]
    assert command.run_again(recipe) == (
        "align run quickstart --set sft.learning_rate=0.0005 --set 'eval.suites=[bias, toxicity]'"
    )


def test_a_recipe_of_ones_own_has_no_such_command() -> None:
    assert command.run_again({"name": "my-own", "stages": {}}) is None


# ---------------------------------------------------------------- pictures


def test_ticks_are_round_and_inside() -> None:
    assert svg.ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.ticks(-0.013, 0.02, most=4)[0] >= -0.013
    for low, high in ((0.0, 1e-6), (-3.0, 7e5), (99.0, 101.0)):
        found = svg.ticks(low, high)
        assert 2 <= len(found) <= 8 and all(low <= t <= high * (1 + 1e-9) for t in found)


def test_nan_is_a_gap_and_no_data_is_no_picture() -> None:
    nan = float("nan")
    drawn = svg.lines([svg.Series("loss", [(0, 1.0), (1, nan), (2, 2.0)])], title="t", x_label="x")
    assert "nan" not in drawn
    assert svg.lines([svg.Series("loss", [(0, nan)])], title="t", x_label="x") == ""
    assert svg.forest([], title="t", x_label="x") == ""


def test_a_flat_line_and_a_single_point_are_drawn() -> None:
    flat = svg.lines([svg.Series("kl", [(0, 0.0), (1, 0.0)])], title="t", x_label="x")
    assert "polyline" in flat
    assert "circle" in svg.lines([svg.Series("kl", [(3, 2.0)])], title="t", x_label="x")


def test_results_with_nan_are_not_strict_json(run_dir: Path) -> None:
    for path in run_dir.glob("eval/*/results.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
