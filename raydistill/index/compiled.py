"""The decorator for the machine-code loops of this room: numba, without the GIL, cached on disk where that is possible.

What the loops compute lives beside their callers, in `postings`, `accumulate`, `skipping`, `heaps` and `segment`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """Compile a loop on first use, releasing the GIL while it runs.

    The machine code is cached beside the source or in numba's own cache folder. Where neither can be written (a
    read-only installation without a home directory) the loop is compiled anew in every process. No fast-math: the
    order of float32 additions is part of what `search` promises.
    """
    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return numba.njit(nogil=True)(loop)


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Return the number of the lowest set bit of a uint64 that is not 0; one machine instruction."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), build
