"""raydistill: LLM query rewriting distilled into a sparse conversational retriever, on Ray."""

__version__ = "0.1.0"
