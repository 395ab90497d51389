"""Sparse encoders. Importing them bounds what torch's CPU products keep of the shapes they have seen."""

import os

# oneDNN compiles a kernel for every shape and keeps 1,024 of them, and torch's binding to it keeps as many descriptions
# beside them. Hardly two batches of texts as long as they are have one shape, so most would never be used again, and an
# actor that encodes for hours would grow by a GiB. One batch needs few: with a 6-layer encoder 4 in float32, 7 in bfloat16,
# and a bfloat16 training step 21 (measured). Both numbers are read at the first product.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "32")
