"""The model card written beside an exported student: what it is, what it was trained on, how to use it."""

from __future__ import annotations

import yaml

from raydistill.config import DistillConfig


def model_card(config: DistillConfig) -> str:
    """Return the card as Markdown with a YAML header, as hubs and sentence-transformers expect it."""
    header = yaml.safe_dump(
        {
            "library_name": "sentence-transformers",
            "pipeline_tag": "feature-extraction",
            "tags": ["sparse-encoder", "splade", "conversational-search", "raydistill"],
        },
        sort_keys=False,
    )
    train, objective = config.train, config.train.objective
    weight = objective.contrastive_weight
    teachers = ", ".join(teacher.name for teacher in config.teachers)
    return f"""---
{header}---

# {config.run}

A sparse conversational query encoder distilled by raydistill. It reads a whole conversation, newest turn first
(`question [SEP] previous answer [SEP] previous question ...`), and gives one sparse vector over its vocabulary, to be
matched with the vectors of the passage index it was trained for.

| | |
|---|---|
| starting point | `{config.student.model}`, {config.student.head} head |
| teachers (rewrites) | {teachers}, combined by {objective.combine} |
| passage vectors | {config.index.documents.kind} |
| objective | {1 - weight:g} KLD (tau {objective.temperature:g}) + {weight:g} InfoNCE |
| regularisation | FLOPS {objective.flops_weight:g}, L1 {objective.l1_weight:g} |
| training | {train.epochs:g} epochs, batch {train.global_batch}, learning rate {train.learning_rate:g} |
| text | {config.student.text.max_tokens} tokens; {config.student.text.answer_words} words of each answer |

```python
from sentence_transformers import SparseEncoder

student = SparseEncoder("path/to/this/folder", device="cpu")
vectors = student.encode_query(["and who directed it? [SEP] It came out in 1982. [SEP] When was Blade Runner made?"])
```
"""
