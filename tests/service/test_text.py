"""What is shown: texts of strangers are inert, and the page is whole and short enough."""

from __future__ import annotations

import dataclasses

import pytest
from markdown_it import MarkdownIt

from benchmarks import gate
from benchmarks.service import overrides, text, verdict
from tests.records import GPU, NAME, make_compared
from tests.service.pull_requests import BASE, CASE, HEAD, MODEL, decide, judged

HOSTILE = [
    ("a\n## b", "a ## b".replace("#", f"#{text.JOINER}")),
    ("[x](https://evil)", rf"\[x\](https:{text.JOINER}//evil)"),
    ("<img src=x>", r"\<img src=x\>"),
    ("a|b", r"a\|b"),
    ("`code`", r"\`code\`"),
    ("*b* ~~s~~", r"\*b\* \~\~s\~\~"),
    ("_i_ device_us", r"\_i\_ device_us"),
    ("@maintainer", f"@{text.JOINER}maintainer"),
    ("owner/x#1", f"owner/x#{text.JOINER}1"),
    ("www.evil.org", f"www{text.JOINER}.evil.org"),
    ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
    ("a\u202eb\u200b\x1b[31m", r"ab\[31m"),
    ("$x$", r"\$x\$"),
    (r"\[x]", r"\\\[x\]"),
]


@pytest.mark.parametrize(("given", "shown"), HOSTILE)
def test_texts_of_strangers_are_inert(given: str, shown: str) -> None:
    assert text.inert(given) == shown


def test_a_long_text_is_cut() -> None:
    assert len(text.inert("x" * 10_000)) == text.LONGEST + 1


def test_a_hostile_record_shows_as_text() -> None:
    evil = "x\n\n@all <script> ![a](http://b) | c\n```mermaid"
    run = make_compared(environment=dataclasses.replace(GPU, torch=evil))
    checks = tuple(dataclasses.replace(check, passed=False, detail=evil) for check in run.checks)
    outcome = decide(judged(dataclasses.replace(run, checks=checks)))
    page = text.page(outcome, (evil,), None, HEAD, BASE)
    assert "wrong result" in page
    tokens = [
        one
        for token in MarkdownIt("commonmark").enable("table").parse(page)
        for one in [token, *(token.children or [])]
    ]
    assert not {"image", "link_open", "html_inline", "html_block", "fence", "code_inline"} & {
        one.type for one in tokens
    }
    assert [one.tag for one in tokens if one.type == "heading_open"] == ["h2", "h4", "h3"]
    for alive in ("@all", "http://"):  # what GitHub makes links of, where no markup asks for one
        assert alive not in page


def test_the_page_fits_into_a_comment_whatever_is_in_it() -> None:
    run, long = make_compared(), "x" * 10_000
    one = gate.judge(run, CASE).verdicts[0]
    bad = dataclasses.replace(one, status=gate.Status.REGRESSION, reason=long)
    judgement = gate.Judgement((bad,) * 300, (long,) * 300, 300)
    outcome = verdict.Outcome((long,) * 300, (verdict.Found(MODEL, run, judgement),) * 3)
    page = text.page(outcome, (f"benchmarks/{long}",) * 200, None, HEAD, BASE)
    assert page.startswith("## perf-verdict: RED")
    assert len(page) <= text.MOST_CHARACTERS


def test_the_picture_has_a_bar_a_workload_and_the_limit() -> None:
    judgement = gate.judge(make_compared(device=1.1), CASE)
    lines = text.chart(judgement.verdicts)
    assert f'  x-axis ["{NAME}"]' in lines
    (bar,) = (line for line in lines if line.startswith("  bar"))
    assert bar == "  bar [10.0]"
    assert lines[-3] == "  line [1.0]"


def test_an_override_is_no_green() -> None:
    outcome = decide(judged(make_compared(device=1.1)))
    page = text.page(outcome, (), overrides.Override("maintainer", "a *reason*", "https://x/5"), HEAD, BASE)
    assert page.startswith("## perf-verdict: RED, overridden for this commit")
    assert r"Overridden by maintainer: a \*reason\* ([run](https://x/5))" in page
