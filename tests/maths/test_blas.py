"""BLAS on one thread, as long as anybody wants it."""

from threadpoolctl import threadpool_info, threadpool_limits

from patchlake.pipeline.maths.blas import on_one_thread


def threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_it_is_one_thread_until_the_last_block_ends_whichever_that_is():
    with threadpool_limits(2, "blas"):
        first, second = on_one_thread(), on_one_thread()
        first.__enter__()
        assert threads() == {1}
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}
