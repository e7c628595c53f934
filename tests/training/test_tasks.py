"""The date task: every form means the day that it stands for, and the held-out dates are never trained on."""

import datetime
import random
import re

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.training.tasks import TASKS, find_task
from llm_journey.training.tasks_dates import STYLES, all_dates, date_pairs, write_date

LONGEST = 56  # with the begin and end token it fits the recipe's context of 64 bytes


def _written(day: datetime.date, style: str, count: int = 30) -> set[str]:
    generator = random.Random(0)
    return {write_date(day, style, generator) for _ in range(count)}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("the 3rd of March", "the 3rd of March, 1998"),
        ("03/03/98 (UK)", "03/03/98 (UK)"),
        ("Tuesday, 3 March 1998", "Tuesday, 3 March 1998"),
        ("3.III.1998", "3.III.1998"),
        ("the third of March, nineteen ninety-eight", "the third of march nineteen ninety-eight"),
        ("19980303", "19980303"),
        ("3 March '98", "3 MARCH '98"),
    ],
)
def test_forms_by_hand(style: str, expected: str) -> None:
    assert expected in _written(datetime.date(1998, 3, 3), style, 300)


def test_words_by_hand() -> None:
    def words(*day: int) -> str:
        return re.sub(",", "", max(_written(datetime.date(*day), "the third of March, nineteen ninety-eight"))).lower()

    assert words(2000, 1, 12) == "the twelfth of january two thousand"
    assert words(2009, 5, 21) == "the twenty-first of may two thousand and nine"
    assert words(2010, 6, 30) == "the thirtieth of june twenty ten"
    assert words(1950, 7, 8) == "the eighth of july nineteen fifty"
    assert words(1971, 8, 20) == "the twentieth of august nineteen seventy-one"


@pytest.mark.parametrize(
    ("style", "formats"),
    [
        ("day month year", ["%d %B %Y"]),
        ("March 3, 1998", ["%B %d, %Y", "%B %d %Y"]),
        ("3-Mar-98", ["%d-%b-%Y", "%d-%b-%y"]),
        ("Mar 3, 1998", ["%b %d, %Y", "%b %d %Y", "%b. %d, %Y", "%b. %d %Y"]),
        ("Tuesday, 3 March 1998", ["%A, %d %B %Y", "%A %d %B %Y"]),
        ("Tue, Mar 3 1998", ["%a, %b %d %Y", "%a %b %d %Y"]),
        ("03/03/98 (UK)", ["%d/%m/%Y (UK)", "%d/%m/%y (UK)", "%d-%m-%Y (UK)", "%d-%m-%y (UK)"]),
        ("03/03/98 (US)", ["%m/%d/%Y (US)", "%m/%d/%y (US)", "%m-%d-%Y (US)", "%m-%d-%y (US)"]),
        ("3.3.1998", ["%d.%m.%Y", "%d.%m.%y"]),
        ("1998/3/3", ["%Y/%m/%d", "%Y-%m-%d", "%Y.%m.%d"]),
        ("19980303", ["%Y%m%d"]),
        ("3 March '98", ["%d %B '%y"]),
    ],
)
def test_python_reads_the_same_day(style: str, formats: list[str]) -> None:
    """strptime is the judge; its two-digit years begin in 1969, ours in 1950."""
    generator = random.Random(1)
    for day in generator.sample(all_dates(), 300):
        text = write_date(day, style, generator)
        found = set()
        for form in formats:
            try:
                parsed = datetime.datetime.strptime(text, form).date()
            except ValueError:
                continue
            found.add(parsed.replace(year=(parsed.year - 1950) % 100 + 1950) if "%y" in form else parsed)
        assert found == {day}, (text, day)


def test_no_date_is_in_both_splits_and_every_form_in_each() -> None:
    made = date_pairs(seed=3, held_out=0.1, num_pairs=4000)
    answers = {split: {target for _, target in pairs} for split, pairs in made.items()}
    assert not answers["train"] & answers["validation"]
    assert len(made["train"]) == 4000 and len(made["validation"]) == 400
    assert all(datetime.date.fromisoformat(target).isoformat() == target for target in answers["train"])
    assert max(len(source) for pairs in made.values() for source, _ in pairs) <= LONGEST
    joined = "\n".join(source.lower() for source, _ in made["validation"])
    for sign in ("(uk)", "(us)", "nineteen", " the ", "'", "monday", "viii"):
        assert sign in joined
    assert made == date_pairs(seed=3, held_out=0.1, num_pairs=4000)
    assert made != date_pairs(seed=4, held_out=0.1, num_pairs=4000)


def test_one_text_has_one_answer() -> None:
    """The same text may be drawn for two days only if they are one: else the task could not be solved."""
    answers: dict[str, str] = {}
    generator = random.Random(5)
    for day in generator.sample(all_dates(), 4000):
        for style in STYLES:
            text = write_date(day, style, generator)
            assert answers.setdefault(text, day.isoformat()) == day.isoformat(), text


def test_an_unknown_task_lists_the_known_ones() -> None:
    assert list(TASKS) == ["dates"]
    with pytest.raises(BadInputError, match="dates"):
        find_task("date")
