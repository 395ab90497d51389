"""Names of measures in configurations: which of ir_measures' can be computed here."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)
def measure_name(name: str) -> str:
    """Return the name of a measure that ir_measures can compute in this environment.

    A name may parse and still fail when it is computed, after hours of training: its package is not installed, or it wants a
    cutoff. So it is computed once, for two passages of one query.

    Raises ValueError saying what is wrong.
    """
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
    except (ValueError, NameError, SyntaxError) as error:
        raise ValueError(f"{name!r} is no ir_measures name ({error}); nDCG@10, R@100 and RR are examples") from None
    cutoff = measure.params.get("cutoff")
    # trec_eval ends the whole process at a cutoff of 0.
    if cutoff is not None and (not isinstance(cutoff, (int, float)) or cutoff < 1 or cutoff != int(cutoff)):
        raise ValueError(f"{name!r} has the cutoff {cutoff}; a cutoff is a whole number of passages, at least 1")
    try:
        ir_measures.calc_aggregate([measure], {"c1_2": {"p1": 1, "p2": 0}}, {"c1_2": {"p1": 2.0, "p2": 1.0}})
    except Exception as error:
        # Every provider fails in its own way: a missing package, a missing parameter, an assertion, another program's exit.
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name!r} cannot be computed here ({said}); nDCG@10, R@100 and RR can") from None
    return name


def cutoff_of(name: str) -> int | None:
    """Return how many passages a measure looks at, None for all; the name is one that `measure_name` returned."""
    import ir_measures

    cutoff: int | None = ir_measures.parse_measure(name).params.get("cutoff")
    return cutoff
