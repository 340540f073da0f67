"""What people read: the table, the Markdown, the page. Figures, intervals, verdicts and reasons are all there."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from benchmarks import report
from benchmarks.gate import Case, judge
from tests.records import CPU, GPU, NAME, OTHER, make_compared, make_run, steady


@pytest.fixture
def passing():
    run = make_run({**steady(), **steady(workload=OTHER)}, skipped=("128x32x157184-bf16-100",))
    return run, judge(run, Case())


@pytest.fixture
def failing():
    run = dataclasses.replace(make_run(steady(device=2.0)), workloads=(NAME, OTHER))
    return run, judge(run, Case())


def test_terminal(passing, capsys):
    report.print_terminal(*passing)
    text = capsys.readouterr().out
    assert "PASS on NVIDIA Test (GPU): 4 PASS" in text
    assert re.search(rf"{NAME}.*device_us.*10\.0.*150.*15\.00x \[.*\].*818.*PASS", text)
    assert "Left out, because they need a GPU: 128x32x157184-bf16-100." in text


def test_both_states_of_a_comparison_are_named(capsys):
    run = make_compared()
    report.print_terminal(run, judge(run, Case()))
    assert "commit aaaaaaaaaa beside dddddddddd" in " ".join(capsys.readouterr().out.split())


def test_brackets_in_a_record_are_no_markup(capsys):
    run = make_run(steady())
    failed = dataclasses.replace(run.checks[0], passed=False, detail="boom [/foo]")
    run = dataclasses.replace(run, checks=(failed, *run.checks[1:]))
    report.print_terminal(run, judge(run, Case()))
    assert "boom [/foo]" in capsys.readouterr().out


def test_what_a_record_says_is_neither_markup_nor_a_command_to_the_terminal(capsys):
    run = make_run(steady(), environment=dataclasses.replace(GPU, device="a\x1b[2J|b"))
    detail = "3 ids | differ\n## <img src=x> ![x](y) \x1b]0;x\x07"
    run = dataclasses.replace(
        run, checks=(dataclasses.replace(run.checks[0], passed=False, detail=detail), *run.checks[1:])
    )
    judgement = judge(run, Case())
    text = report.markdown(run, judgement)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")} == {10}
    assert not [line for line in text.splitlines() if line.startswith("## ")]
    assert not re.search(r"(?<!\\)[<\[]img|(?<!\\)\[x", text)
    report.print_terminal(run, judgement)
    for shown in (text, capsys.readouterr().out):
        assert "\x1b" not in shown
        assert "differ" in shown


def test_an_interval_without_ends_is_shown_as_one(capsys):
    run = make_run({(NAME, "device_us"): [15.0]}, slowdowns={(NAME, "device_us"): [1.0]})
    report.print_terminal(run, judge(run, Case()))
    assert "+0.00% [-100.0%, inf]" in capsys.readouterr().out


def test_verdicts_for_machines_are_json_where_the_interval_has_no_end():
    run = make_run({(NAME, "device_us"): [15.0], (NAME, "call_us"): [4.0]})
    plain = report.plain(run, judge(run, Case()))
    json.dumps(plain, allow_nan=False)
    assert {verdict["ratio"]["high"] for verdict in plain["verdicts"]} == {None}


def test_a_cpu_run_says_so(capsys):
    run = make_run({(NAME, "call_us"): [2.0, 2.01, 2.02]}, environment=CPU)
    report.print_terminal(run, judge(run, Case()))
    text = capsys.readouterr().out
    assert "no GPU here" in text
    assert "GB/s" not in text


def test_markdown(failing):
    text = report.markdown(*failing)
    assert text.startswith("### REGRESSION on NVIDIA Test (GPU): 1 PASS, 1 REGRESSION, 2 INCONCLUSIVE")
    assert "| below 3.00x (floor) |" in text
    assert f"| {OTHER} | device_us | - | - | speedup | - | - | INCONCLUSIVE | no samples beside reference |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src")]


def test_page_needs_no_network(passing, failing):
    for run, judgement in (passing, failing):
        html = report.page(run, judgement, "asv/index.html")
        parser = _Links()
        parser.feed(html)
        assert [link for link in parser.links if link != "data:,"] == ["asv/index.html"]
        assert "http" not in html.replace("http-equiv", "")
        for verdict in judgement.verdicts:
            assert verdict.workload in html
            assert verdict.reason in html
    assert "asv/index.html" not in report.page(*passing, None)


def test_page_escapes_what_it_shows(passing):
    run, judgement = passing
    run = dataclasses.replace(run, environment=dataclasses.replace(run.environment, device="<b>GPU</b>"))
    assert "<b>GPU</b>" not in report.page(run, judgement, None)


@pytest.mark.parametrize(
    ("value", "text"), [(6.789, "6.79"), (67.89, "67.9"), (678.9, "679"), (67890.0, "67,890"), (0.6789, "0.679")]
)
def test_three_digits(value, text):
    assert report.three_digits(value) == text


def test_bars_lie_on_the_axis(passing, failing):
    for _, judgement in (passing, failing):
        for bar in report.bars(judgement.verdicts):
            assert 0 <= bar.start <= bar.point <= 100
            assert 0 <= bar.bound <= 100
