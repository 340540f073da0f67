"""Generated word problems are right and reproducible, their splits apart; GSM8K's are read."""

from __future__ import annotations

import json
import operator
import re
from decimal import Decimal

import pytest

from benchmarks.e2e.problems import TEMPLATES, Problem, extract_answer, generate, read_gsm8k, split_of

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
WORDS_FOR_TWO = ("twice", "half")


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def test_every_step_is_right_and_uses_what_is_known() -> None:
    for problem in generate(3000, 0, "train"):
        *steps, last = problem.solution.split("\n")
        known = set(numbers(problem.question)) | ({2} if any(w in problem.question for w in WORDS_FOR_TWO) else set())
        assert 1 <= len(steps) <= 3
        for step in steps:
            (found,) = EQUATION.findall(step)
            left, sign, right, result = int(found[0]), found[1], int(found[2]), int(found[3])
            assert OPERATIONS[sign](left, right) == result, step
            assert {left, right} <= known, problem
            assert 0 <= result < 1000
            known.add(result)
        assert last == f"#### {problem.answer}"
        assert int(problem.answer) == result


# What questions ask for, worked out from their wording alone.
ASKED = [
    (r"has (\d+) \w+\. \w+ \w+ (\d+) more\. How many", lambda a, b: a + b),
    (r"has (\d+) \w+ and gives (\d+) of them", lambda a, b: a - b),
    (r"has (\d+) .* (\d+) more and then gives (\d+)", lambda a, b, c: a + b - c),
    (r"are (\d+) people .* (\d+) people get off and (\d+) get on", lambda a, b, c: a - b + c),
    (r"has (\d+) \w+ with (\d+) \w+ in each\. How", lambda a, b: a * b),
    (r"has (\d+) \w+ of (\d+) \w+ and (\d+) loose", lambda a, b, c: a * b + c),
    (r"fills (\d+) \w+ with (\d+) \w+ each and sells (\d+)", lambda a, b, c: a * b - c),
    (r"shares (\d+) \w+ evenly among (\d+)", lambda a, b: a / b),
    (r"has (\d+) .* has (\d+)\. They share them evenly among (\d+)", lambda a, b, c: (a + b) / c),
    (r"has (\d+) \w+\. \w+ has twice as many.* together", lambda a: 3 * a),
    (r"collects (\d+) \w+\. \w+ collects half as many.* together", lambda a: 1.5 * a),
    (r"costs \$(\d+)\. \w+ buys (\d+) of them and pays with \$(\d+)", lambda a, b, c: c - a * b),
    (r"buys (\d+) tickets at \$(\d+) each and a \w+ for \$(\d+)", lambda a, b, c: a * b + c),
    (r"buys (\d+) tickets at \$(\d+) each and (\d+) drinks at \$(\d+)", lambda a, b, c, d: a * b + c * d),
    (r"has (\d+) \w+\. \w+ has (\d+) more than \w+\. .* together", lambda a, b: 2 * a + b),
    (r"has (\d+) \w+\. \w+ has (\d+) fewer than \w+\. .* together", lambda a, b: 2 * a - b),
    (r"reads (\d+) pages a day of a book with (\d+) pages.* after (\d+) days", lambda a, b, c: b - a * c),
    (r"earns \$(\d+) an hour and works (\d+) hours.* for \$(\d+)", lambda a, b, c: a * b - c),
    (r"has (\d+) .* has (\d+)\. They lose (\d+) .* of (\d+)\.", lambda a, b, c, d: (a + b - c) / d),
    (r"has (\d+) \w+ with (\d+) \w+ in each and gives half", lambda a, b: a * b / 2),
    (r"saves \$(\d+) in May and twice .* costs \$(\d+)", lambda a, b: b - 3 * a),
]


def test_the_answers_are_those_of_the_questions() -> None:
    seen = set()
    for problem in generate(3000, 1, "held-out"):
        read = [(i, found, rule) for i, (how, rule) in enumerate(ASKED) if (found := re.search(how, problem.question))]
        assert len(read) == 1, problem.question
        kind, found, rule = read[0]
        assert rule(*map(int, found.groups())) == int(problem.answer), problem
        seen.add(kind)
    assert len(seen) == len(ASKED) == len(TEMPLATES)


def test_no_question_is_in_both_splits_whatever_the_seeds() -> None:
    train = {problem.question for seed in range(3) for problem in generate(2000, seed, "train")}
    held_out = {problem.question for seed in range(3) for problem in generate(2000, seed, "held-out")}
    assert not train & held_out
    assert {split_of(question) for question in train} == {"train"}
    assert len(held_out) > 5000


def test_where_a_question_belongs_stays() -> None:
    """Or a model would be tested on what it was trained on by an earlier version."""
    splits = [split_of(f"How many are {number}?") for number in range(60)]
    assert [number for number, split in enumerate(splits) if split == "held-out"] == [2, 26, 29, 30, 41, 58]


def test_about_a_tenth_is_held_out() -> None:
    splits = [split_of(f"How much is {number}?") for number in range(4000)]
    assert 300 < splits.count("held-out") < 500


def test_seeds_are_reproducible_and_differ() -> None:
    assert generate(50, 3, "train") == generate(80, 3, "train")[:50]
    assert generate(50, 3, "train") != generate(50, 4, "train")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'held-out'; got 'test'"):
        generate(1, 0, "test")


def test_gsm8k_is_read(tmp_path) -> None:
    lines = [
        {"question": "How many?", "answer": "He has 2*600=<<2*600=1200>>1200.\n#### 1,200"},
        {"question": "Wie viele Äpfel?", "answer": "Minus.\n#### -5"},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8")
    assert read_gsm8k(path) == [
        Problem(lines[0]["question"], lines[0]["answer"], Decimal(1200)),
        Problem(lines[1]["question"], lines[1]["answer"], Decimal(-5)),
    ]


def test_a_line_of_json_ends_with_a_line_feed_alone(tmp_path) -> None:
    """In a text, JSON allows what ends lines elsewhere; and a file may begin with a mark of its byte order."""
    question = "How many\u2028eggs\u0085are\u2029left?"
    line = json.dumps({"question": question, "answer": "#### 3"}, ensure_ascii=False)
    path = tmp_path / "test.jsonl"
    path.write_bytes(f"\ufeff{line}\r\n{line}\n".encode())
    assert read_gsm8k(path) == [Problem(question, "#### 3", Decimal(3))] * 2


@pytest.mark.parametrize(
    ("last", "answer"),
    [
        ("77.00", "77"), ("007", "7"), ("$1,200.", "1200"), ("50%", "50"), ("+4", "4"), ("\u22125", "-5"),
        ("-$5", "-5"), ("$-5", "-5"), ("€2.50", "2.5"), (".5", "0.5"), ("-$.5", "-0.5"),
    ],
)  # fmt: skip
def test_the_answer_of_a_line_is_its_number(last: str, answer: str, tmp_path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": f"#### {last}"}))
    assert [problem.answer for problem in read_gsm8k(path)] == [Decimal(answer)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON in UTF-8; Expecting property name"),
        (
            '{"question": "caf\udce9?", "answer": "#### 3"}',
            "expected JSON in UTF-8; 'utf-8' codec can't decode byte 0xe9",
        ),
        ("[" * 100_000, "expected JSON in UTF-8; .*recursion"),
        (
            r'{"question": "\ud83d?", "answer": "#### 3"}',
            'expected an object .*, both Unicode text; got {"question": "',
        ),
        ("[1]", 'expected an object with "question" and "answer"'),
        ('{"question": "?"}', 'expected an object with "question" and "answer"'),
        ('{"question": "?", "answer": 3}', 'expected an object with "question" and "answer"'),
        ('{"question": "?", "answer": "3"}', 'expected an "answer" that ends in `#### N`'),
        ('{"question": "?", "answer": "#### three"}', 'expected an "answer" that ends in `#### N`'),
        ('{"question": "?", "answer": "#### 3 or 4"}', 'expected an "answer" that ends in `#### N`'),
        ('{"question": "?", "answer": "#### $$3"}', 'expected an "answer" that ends in `#### N`'),
        ('{"question": "?", "answer": "#### "}', 'expected an "answer" that ends in `#### N`'),
    ],
)
def test_a_malformed_line_is_named(line: str, message: str, tmp_path) -> None:
    path = tmp_path / "test.jsonl"
    text = '{"question": "?", "answer": "#### 3"}\n' + line + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))  # a byte that is no UTF-8 stands as one of those
    with pytest.raises(ValueError, match=message) as caught:
        read_gsm8k(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3+4=7.\n#### 7", "7"),
        ("#### 1\nor rather\n#### 2", "2"),
        ("#### $1,234.50 in all", "1234.50"),
        ("####-12", "-12"),
        ("It costs $5, and then 18.", "18"),
        ("It costs 18 dollars. ####", "18"),
        ("She has 40,000.", "40000"),
        ("That is 12-5", "5"),
        ("Down to -5", "-5"),
        ("Down to \u22125.", "-5"),
        ("12\u22125=7, no, 12\u22125", "5"),
        ("He owes -$5.", "-5"),
        ("He has $-5.", "-5"),
        ("#### +77.00", "77"),
        ("#### 007", "7"),
        ("#### 77.5", "77.5"),
        ("A rise of 20%.", "20"),
        ("#### .5", "0.5"),
        ("Down to -.25.", "-0.25"),
        ("Up to $.75", "0.75"),
        ("He has ...5", "5"),
        ("They are left.5", "5"),
        ("1.2.3", "3"),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_answer_in_a_text(text: str, answer: str | None) -> None:
    assert extract_answer(text) == (None if answer is None else Decimal(answer))
