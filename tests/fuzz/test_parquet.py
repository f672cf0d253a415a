"""A few cases of the fuzz targets, in this process: of odd Parquet files none ends otherwise."""

import random

from tests.fuzz.harness import target


def test_odd_parquet_files_are_read_or_refused():
    case = target("parquet")
    for number in range(40):
        case(random.Random(f"0/{number}"))


def test_a_good_file_is_read_whatever_is_beside_it():
    case = target("lake")
    for number in range(10):
        case(random.Random(f"0/{number}"))
