"""Sparse encoders. Importing them bounds the kernels that oneDNN keeps on a CPU."""

import os

# oneDNN compiles a kernel for every shape and keeps 1,024 of them, about 160 KB each. Hardly two batches of texts as long as
# they are have one shape, so most would never be used again; a batch itself needs less than 30. Read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
