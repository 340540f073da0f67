"""Word problems with a worked solution and a number for an answer: generated ones, and GSM8K's from a file."""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

Split = Literal["train", "held-out"]
T = TypeVar("T")

NAMES = ("Ava", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jack", "Lena", "Mia", "Noah", "Tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pencils", "shells", "stamps", "stickers")
GOODS = ("book", "cake", "hat", "pen", "plant", "toy")
CONTAINERS = ("bags", "boxes", "baskets", "packs")
HELD_OUT_SHARE = 0.1
MARK = "####"
# With a sign, which the minus in 12-5 is not, and one of a currency, in either order. A point may begin it, but not one
# that ends a word or follows another.
_NUMBER = re.compile(r"(?:(?:(?<!\d)[-+\u2212])?[$€£]?|[$€£][-+\u2212])(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)")
_ANSWER = re.compile(rf"({_NUMBER.pattern})%?\.?")
_PLAIN = str.maketrans({"\u2212": "-", "$": None, "€": None, "£": None, ",": None})


@dataclass(frozen=True)
class Problem:
    """A question, its solution step by step with a last line `#### 42`, and the answer, 42."""

    question: str
    solution: str
    answer: Decimal


def generate(count: int, seed: int, split: Split) -> list[Problem]:
    """The first `count` problems of `stream`."""
    return list(islice(stream(seed, split), count))


def stream(seed: int, split: Split) -> Iterator[Problem]:
    """Generated problems without end, the same ones for the same seed. Which split a question belongs to follows from
    its text, so that no seed brings a question of one split into the other.

    Raises:
        ValueError: there is no such split.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f"split: expected 'train' or 'held-out'; got {split!r}")
    draw = Draw(seed)
    while True:
        question, steps = draw.one_of(TEMPLATES)(draw)
        if split_of(question) == split:
            yield _problem(question, steps)


def equations(seed: int) -> Iterator[tuple[str, str]]:
    """Bare equations of the kind that solutions have, without end, the hard kinds more often: `47-29=` and `18`."""
    draw = Draw(seed)
    while True:
        kind = draw.number(1, 20)
        if kind <= 10:
            left = draw.number(3, 108 if draw.number(1, 10) > 1 else 150)
            right = draw.number(2, min(99, left - 1))
            yield f"{left}-{right}=", str(left - right)
        elif kind <= 17:
            left, right = draw.number(2, 108), draw.number(2, 99)
            yield f"{left}+{right}=", str(left + right)
        else:
            right, result = draw.number(2, 9), draw.number(2, 15)
            yield f"{right * result}/{right}=", str(result)


def split_of(question: str) -> Split:
    """The split that a question belongs to."""
    digest = hashlib.sha256(question.encode()).digest()
    return "held-out" if int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32 else "train"


def read_gsm8k(path: Path) -> list[Problem]:
    """The problems of a file in GSM8K's format: lines of JSON with "question" and "answer", which ends in `#### 42`.
    Other characters that end lines elsewhere, such as U+2028, may stand in a JSON text.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not as described, or not UTF-8; the message names it.
    """
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [_gsm8k(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def extract_answer(text: str) -> Decimal | None:
    """The number after the last `####` or, where none follows one, the last number in the text: its value, so that
    `$1,200.00` and `01200` are both 1200. None if there is no number."""
    marked = _NUMBER.search(text.rpartition(MARK)[2]) if MARK in text else None
    found = marked.group() if marked else next(iter(reversed(_NUMBER.findall(text))), None)
    return None if found is None else _value(found)


def _value(number: str) -> Decimal:
    return Decimal(number.translate(_PLAIN))


def _gsm8k(line: bytes, place: str) -> Problem:
    try:
        said = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: expected JSON in UTF-8; {error}") from error
    if not isinstance(said, dict) or not all(_is_text(said.get(key)) for key in ("question", "answer")):
        got = line.decode()[:80]
        raise ValueError(f'{place}: expected an object with "question" and "answer", both Unicode text; got {got}')
    _, mark, last = said["answer"].rpartition(MARK)
    answer = _ANSWER.fullmatch(last.strip())
    if not mark or answer is None:
        raise ValueError(f'{place}: expected an "answer" that ends in `{MARK} N`; got {said["answer"][-80:]!r}')
    return Problem(said["question"], said["answer"], _value(answer[1]))


def _is_text(value: object) -> bool:
    """JSON can write halves of a character, which nothing can encode."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _problem(question: str, steps: list[str]) -> Problem:
    """Of steps with equations, such as `Ava has 3+4=7 coins.`, whose last result is the answer."""
    answer = steps[-1].rpartition("=")[2].split()[0].rstrip(".")
    return Problem(question, "\n".join([*steps, f"{MARK} {answer}"]), Decimal(answer))


class Draw:
    """Seeded draws of what a template leaves open."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one_of(self, choices: tuple[T, ...]) -> T:
        return self._random.choice(choices)

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def people(self) -> tuple[str, str]:
        """Two names, not the same."""
        one, other = self._random.sample(NAMES, 2)
        return one, other

    def things(self) -> str:
        return self.one_of(THINGS)


Template = Callable[[Draw], "tuple[str, list[str]]"]
"""What draws a question and the steps of its solution, each with one equation; numbers stay below 1000."""


def more(draw: Draw) -> tuple[str, list[str]]:
    (name, _), things, verb = draw.people(), draw.things(), draw.one_of(("buys", "finds", "gets"))
    first, added = draw.number(2, 99), draw.number(2, 99)
    question = f"{name} has {first} {things}. {name} {verb} {added} more. How many {things} does {name} have now?"
    return question, [f"{name} has {first}+{added}={first + added} {things}."]


def fewer(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    first = draw.number(10, 99)
    given = draw.number(2, first - 1)
    question = f"{name} has {first} {things} and gives {given} of them to {other}. How many {things} are left?"
    return question, [f"{name} has {first}-{given}={first - given} {things} left."]


def more_then_fewer(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things, verb = draw.people(), draw.things(), draw.one_of(("buys", "finds", "gets"))
    first, added = draw.number(5, 60), draw.number(5, 39)
    given = draw.number(2, first + added - 1)
    question = (
        f"{name} has {first} {things}. {name} {verb} {added} more and then gives {given} to {other}. "
        f"How many {things} does {name} have left?"
    )
    total = first + added
    return question, [
        f"{name} has {first}+{added}={total} {things}.",
        f"Then {total}-{given}={total - given} are left.",
    ]


def bus(draw: Draw) -> tuple[str, list[str]]:
    first, on, vehicle = draw.number(10, 60), draw.number(2, 39), draw.one_of(("bus", "train", "boat"))
    off = draw.number(2, first - 1)
    question = (
        f"There are {first} people on a {vehicle}. {off} people get off and {on} get on. "
        f"How many people are on the {vehicle} now?"
    )
    stay = first - off
    return question, [f"After {off} get off, {first}-{off}={stay} are left.", f"Now there are {stay}+{on}={stay + on}."]


def packed(draw: Draw) -> tuple[str, list[str]]:
    (name, _), things, containers = draw.people(), draw.things(), draw.one_of(CONTAINERS)
    count, each = draw.number(2, 9), draw.number(2, 15)
    question = (
        f"{name} has {count} {containers} with {each} {things} in each. How many {things} does {name} have in all?"
    )
    return question, [f"{name} has {count}*{each}={count * each} {things}."]


def packed_and_loose(draw: Draw) -> tuple[str, list[str]]:
    (name, _), things, containers = draw.people(), draw.things(), draw.one_of(CONTAINERS)
    count, each, loose = draw.number(2, 9), draw.number(2, 12), draw.number(2, 40)
    question = (
        f"{name} has {count} {containers} of {each} {things} and {loose} loose {things}. "
        f"How many {things} does {name} have?"
    )
    inside = count * each
    return question, [f"The {containers} hold {count}*{each}={inside}.", f"In all {inside}+{loose}={inside + loose}."]


def packed_and_sold(draw: Draw) -> tuple[str, list[str]]:
    (name, _), things, containers = draw.people(), draw.things(), draw.one_of(CONTAINERS)
    count, each = draw.number(2, 9), draw.number(3, 12)
    sold = draw.number(2, count * each - 1)
    question = (
        f"{name} fills {count} {containers} with {each} {things} each and sells {sold} of the {things}. "
        f"How many {things} are left?"
    )
    inside = count * each
    return question, [
        f"{name} had {count}*{each}={inside} {things}.",
        f"Then {inside}-{sold}={inside - sold} are left.",
    ]


def shared(draw: Draw) -> tuple[str, list[str]]:
    (name, _), things = draw.people(), draw.things()
    friends, each = draw.number(2, 9), draw.number(2, 15)
    total = friends * each
    question = f"{name} shares {total} {things} evenly among {friends} friends. How many {things} does each friend get?"
    return question, [f"Each friend gets {total}/{friends}={each} {things}."]


def pooled_and_shared(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    friends, each = draw.number(2, 9), draw.number(3, 12)
    total = friends * each
    first = draw.number(2, total - 2)
    question = (
        f"{name} has {first} {things} and {other} has {total - first}. They share them evenly among {friends} friends. "
        f"How many {things} does each friend get?"
    )
    return question, [f"They have {first}+{total - first}={total} {things}.", f"Each gets {total}/{friends}={each}."]


def twice(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    first = draw.number(3, 49)
    question = f"{name} has {first} {things}. {other} has twice as many. How many {things} do they have together?"
    return question, [f"{other} has 2*{first}={2 * first} {things}.", f"Together {first}+{2 * first}={3 * first}."]


def half(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    second = draw.number(2, 49)
    first = 2 * second
    question = (
        f"{name} collects {first} {things}. {other} collects half as many. How many {things} do they have together?"
    )
    return question, [f"{other} has {first}/2={second} {things}.", f"Together {first}+{second}={first + second}."]


def change(draw: Draw) -> tuple[str, list[str]]:
    (name, _), goods = draw.people(), draw.one_of(GOODS)
    count, price = draw.number(2, 9), draw.number(2, 11)
    paid = draw.number(count * price + 1, 100)
    question = (
        f"A {goods} costs ${price}. {name} buys {count} of them and pays with ${paid}. How much change does {name} get?"
    )
    cost = count * price
    return question, [
        f"They cost {count}*{price}={cost} dollars.",
        f"The change is {paid}-{cost}={paid - cost} dollars.",
    ]


def two_prices(draw: Draw) -> tuple[str, list[str]]:
    (name, _), goods = draw.people(), draw.one_of(GOODS)
    count, price, fee = draw.number(2, 9), draw.number(2, 12), draw.number(3, 60)
    question = (
        f"{name} buys {count} tickets at ${price} each and a {goods} for ${fee}. How much does {name} pay in all?"
    )
    cost = count * price
    return question, [f"The tickets cost {count}*{price}={cost} dollars.", f"In all {cost}+{fee}={cost + fee} dollars."]


def shopping(draw: Draw) -> tuple[str, list[str]]:
    name, _ = draw.people()
    count, price, others, other_price = draw.number(2, 9), draw.number(2, 9), draw.number(2, 9), draw.number(2, 9)
    question = (
        f"{name} buys {count} tickets at ${price} each and {others} drinks at ${other_price} each. "
        f"How much does {name} pay in all?"
    )
    cost, other_cost = count * price, others * other_price
    return question, [
        f"The tickets cost {count}*{price}={cost} dollars.",
        f"The drinks cost {others}*{other_price}={other_cost} dollars.",
        f"In all {cost}+{other_cost}={cost + other_cost} dollars.",
    ]


def more_than(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    first, extra = draw.number(3, 50), draw.number(2, 40)
    question = (
        f"{name} has {first} {things}. {other} has {extra} more than {name}. How many {things} do they have together?"
    )
    second = first + extra
    return question, [
        f"{other} has {first}+{extra}={second} {things}.",
        f"Together {first}+{second}={first + second}.",
    ]


def less_than(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things = draw.people(), draw.things()
    first = draw.number(10, 70)
    less = draw.number(2, first - 2)
    question = (
        f"{name} has {first} {things}. {other} has {less} fewer than {name}. How many {things} do they have together?"
    )
    second = first - less
    return question, [
        f"{other} has {first}-{less}={second} {things}.",
        f"Together {first}+{second}={first + second}.",
    ]


def pages(draw: Draw) -> tuple[str, list[str]]:
    name, _ = draw.people()
    days, each = draw.number(2, 9), draw.number(3, 12)
    total = draw.number(days * each + 1, 150)
    question = (
        f"{name} reads {each} pages a day of a book with {total} pages. How many pages are left after {days} days?"
    )
    read = days * each
    return question, [f"{name} reads {days}*{each}={read} pages.", f"Then {total}-{read}={total - read} are left."]


def wages(draw: Draw) -> tuple[str, list[str]]:
    (name, _), goods = draw.people(), draw.one_of(GOODS)
    hours, wage = draw.number(2, 9), draw.number(5, 12)
    spent = draw.number(2, hours * wage - 1)
    question = (
        f"{name} earns ${wage} an hour and works {hours} hours. Then {name} buys a {goods} for ${spent}. "
        f"How much money is left?"
    )
    earned = hours * wage
    return question, [
        f"{name} earns {hours}*{wage}={earned} dollars.",
        f"Then {earned}-{spent}={earned - spent} are left.",
    ]


def picked_and_packed(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things, containers = draw.people(), draw.things(), draw.one_of(CONTAINERS)
    each, count, lost = draw.number(2, 9), draw.number(2, 9), draw.number(2, 18)
    total = each * count + lost
    first = draw.number(2, total - 2)
    second = total - first
    question = (
        f"{name} has {first} {things} and {other} has {second}. They lose {lost} and put the rest in {containers} of "
        f"{each}. How many {containers} do they fill?"
    )
    return question, [
        f"They have {first}+{second}={total} {things}.",
        f"Then {total}-{lost}={total - lost} are left.",
        f"They fill {total - lost}/{each}={count} {containers}.",
    ]


def half_given(draw: Draw) -> tuple[str, list[str]]:
    (name, other), things, containers = draw.people(), draw.things(), draw.one_of(CONTAINERS)
    count, each = draw.number(2, 9), 2 * draw.number(1, 6)
    total = count * each
    question = (
        f"{name} has {count} {containers} with {each} {things} in each and gives half of the {things} to {other}. "
        f"How many {things} does {other} get?"
    )
    return question, [f"{name} has {count}*{each}={total} {things}.", f"{other} gets {total}/2={total // 2}."]


def savings(draw: Draw) -> tuple[str, list[str]]:
    name, _ = draw.people()
    first = draw.number(3, 30)
    price = draw.number(3 * first + 1, 99)
    question = (
        f"{name} saves ${first} in May and twice as much in June. A bike costs ${price}. "
        f"How much more money does {name} need?"
    )
    return question, [
        f"In June it is 2*{first}={2 * first} dollars.",
        f"In all {first}+{2 * first}={3 * first} dollars.",
        f"{name} needs {price}-{3 * first}={price - 3 * first} dollars.",
    ]


TEMPLATES: tuple[Template, ...] = (
    more, fewer, more_then_fewer, bus, packed, packed_and_loose, packed_and_sold, shared, pooled_and_shared, twice,
    half, change, two_prices, shopping, more_than, less_than, pages, wages, picked_and_packed, half_given, savings,
)  # fmt: skip
