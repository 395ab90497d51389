"""The student: the query encoder that is trained."""

from __future__ import annotations

from typing import Literal

from raydistill.config.data import TextConfig
from raydistill.config.fields import Fraction, ModelSource, Section


class StudentConfig(Section):
    """The query encoder that is trained."""

    model: ModelSource
    """Hub id or folder of a Hugging Face encoder."""
    revision: str | None = None
    head: Literal["mlm", "identity"] = "mlm"
    """mlm: the checkpoint's own masked-LM head. identity: logits = scale * (hidden . embedding) + bias, for encoders
    that ship without one."""
    active_share: Fraction = 0.003
    """identity head only: share of the vocabulary active on average before training; the bias is set to give it."""
    text: TextConfig = TextConfig()
    trust_remote_code: bool = False
