"""What `raydistill prepare` converts, and where to."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from raydistill.config.chain import RayConfig
from raydistill.config.data import ConversationSource, CorpusConfig
from raydistill.config.fields import Location, Name, NonNegativeInt, Operational, PoolConfig, Section


class PrepareConfig(Section):
    """A data set: the conversations of its splits, its corpus, or both."""

    dataset: Name
    """Name of the data set; configurations name its parts ROOT/datasets/DATASET/PART.json."""
    to: Location
    """Root that the prepared parts are put into: s3://bucket/prefix or a folder."""
    conversations: dict[Name, ConversationSource] = Field(default_factory=dict)
    """Conversations by part, for instance train and dev; each source names its reader, and neither name nor split."""
    corpus: CorpusConfig | None = None
    """Files of passages; their number of bad rows counts for them alone."""
    max_bad_rows: NonNegativeInt = 0
    """Malformed rows that may be quarantined in each conversation source."""
    conversations_per_part: PositiveInt = 10_000
    """Conversations in one Parquet part."""
    passages_per_part: PositiveInt = 1_000_000
    """Passages in one Parquet part."""
    workers: Operational[PoolConfig] = PoolConfig()
    """Workers that convert corpus files; one file is converted by one of them."""
    ray: Operational[RayConfig] = RayConfig()

    @model_validator(mode="after")
    def _parts_can_be_told_apart(self) -> PrepareConfig:
        if not self.conversations and self.corpus is None:
            raise ValueError("there is nothing to prepare; name conversations, a corpus, or both")
        for part, source in self.conversations.items():
            if part == "corpus":
                raise ValueError("conversations.corpus: the name corpus is that of the passages; take another")
            if source.reader is None:
                raise ValueError(f"conversations.{part}: names no reader; add reader:")
            if source.name is not None or source.split is not None or source.persona:
                raise ValueError(
                    f"conversations.{part}: name, split and persona are for who reads the prepared part; leave them out"
                )
        return self
