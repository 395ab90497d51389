"""Search engines: the exact one, and Seismic, which finds most of the best passages in less time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from raydistill.config.fields import Fraction, Operational, PoolConfig, Section


class SeismicBuildConfig(Section):
    """How a Seismic index is built (Bruch et al., SIGIR 2024, arXiv 2404.18812); the names are the library's own."""

    n_postings: PositiveInt = 3500
    """Postings kept a term on average, the heaviest of the index."""
    centroid_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Clusters a posting list, as a share of its length."""
    min_cluster_size: PositiveInt = 2
    summary_energy: Fraction = 0.4
    """Share of a cluster's weight that its summary keeps."""
    max_fraction: PositiveFloat = 1.5
    """A posting list is at most n_postings * max_fraction long."""
    doc_cut: PositiveInt = 15
    """Heaviest terms of a passage by which it is clustered."""


class ExactEngine(Section):
    """Every passage that could be among the best is scored."""

    kind: Literal["exact"] = "exact"


class SeismicEngine(Section):
    """Some of the best passages may be missed; the scores of those found are exact. Needs raydistill[seismic]."""

    kind: Literal["seismic"] = "seismic"
    build: SeismicBuildConfig = SeismicBuildConfig()
    query_cut: PositiveInt = 10
    """Heaviest terms of a query that are looked up."""
    heap_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Clusters whose bound is below the k-th score / heap_factor are skipped: lower skips fewer."""


SearchEngine = Annotated[ExactEngine | SeismicEngine, Field(discriminator="kind")]


class TuneSearchConfig(Section):
    """What to try in order to find a fast setting of Seismic that finds enough."""

    k: PositiveInt = 10
    """Passages asked for."""
    recall: Fraction = 0.95
    """Share of the exact top k that must be found, on average over the queries."""
    queries: PositiveInt = 200
    """Most queries to measure on; without a file of queries, so many random passages' heaviest terms are asked."""
    n_postings: tuple[PositiveInt, ...] = Field(default=(1000, 3500), min_length=1)
    summary_energy: tuple[Fraction, ...] = Field(default=(0.4,), min_length=1)
    centroid_fraction: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(default=(0.1,), min_length=1)
    query_cut: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    heap_factor: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(default=(0.7, 0.8, 0.9, 1.0), min_length=1)
    workers: Operational[PoolConfig] = PoolConfig()
    """Of the builds; measuring takes one thread."""
