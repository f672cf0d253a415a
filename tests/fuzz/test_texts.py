"""A short run of the fuzz targets of conditions and settings: a promised error, or none."""

import random

import pytest

from tests.fuzz.harness import target


@pytest.mark.parametrize(("name", "cases"), [("where", 60), ("config", 12)])
def test_any_text_is_an_answer_or_one_line(name: str, cases: int):
    case = target(name)
    for number in range(cases):
        case(random.Random(f"short/{number}"))
