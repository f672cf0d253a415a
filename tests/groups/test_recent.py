"""What was used longest ago leaves first, and only to make room."""

from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.groups.recent import Recent

SIZES = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 50}


@given(st.lists(st.sampled_from(sorted(SIZES)), max_size=60), st.integers(0, 60))
def test_the_kept_fit_the_budget_and_are_the_last_used(asked: list[str], budget: int):
    loaded: list[str] = []

    def load(name: str) -> str:
        # Room was made before: at the peak no more is held than afterwards.
        held = sum(SIZES[kept] for kept in recent._kept)
        assert held == 0 or held + SIZES[name] <= budget
        loaded.append(name)
        return name.upper()

    recent = Recent(load, SIZES.__getitem__, budget)
    expected: list[str] = []
    for name in asked:
        before = len(loaded)
        assert recent.get(name) == name.upper()
        assert (len(loaded) > before) == (name not in expected)
        if name in expected:
            expected.remove(name)
        else:
            while expected and sum(map(SIZES.__getitem__, expected)) + SIZES[name] > budget:
                expected.pop(0)
        expected.append(name)
        assert list(recent._kept) == expected
