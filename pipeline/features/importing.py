"""timm without torch's compiler, which nothing here uses.

`import timm` imports torchvision, and both import `torch._dynamo` for a decorator and a question.
That is two thirds of the import: 2 of 2.9 processor seconds and 145 MB, in every worker of a job.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_LOCK = threading.Lock()


def import_timm() -> ModuleType:
    """Return timm.

    While it is imported, a stand-in takes the place of the compiler, where that is not imported
    yet. The compiler can be imported and used afterwards; it then compiles the few functions of
    timm and torchvision that ask not to be compiled. What the stand-in lacks imports all as usual.
    """
    with _LOCK:
        if "timm" not in sys.modules and _COMPILER not in sys.modules:
            _import_without_compiler()
        import timm
    return timm


def _import_without_compiler() -> None:
    stand_in, part = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    stand_in.__dict__.update(__path__=[], disable=_as_it_is, utils=part)
    part.__dict__.update(is_compile_supported=lambda _device: False)
    sys.modules |= {one.__name__: one for one in (stand_in, part)}
    try:
        # A later timm or torchvision may want more of the stand-in than there is. Then the caller
        # imports what is left with the compiler itself.
        with suppress(Exception):
            import timm  # noqa: F401
    finally:
        for one in (stand_in, part):
            if sys.modules.get(one.__name__) is one:
                del sys.modules[one.__name__]
        if vars(torch).get("_dynamo") is stand_in:
            delattr(torch, "_dynamo")


def _as_it_is(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:  # noqa: ANN401 - as what it stands in for
    """Return a function, or what decorates one, as `torch._dynamo.disable` does."""
    return _as_it_is if function is None else function
