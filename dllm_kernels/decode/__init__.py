"""Block decoding with any model: `decode` takes a batch through its blocks together, with a model of whole sequences;
`decode_batches` keeps slots filled from a queue, each at a block of its own, with a model that caches finished blocks.
"""

from dllm_kernels.decode.batches import BlockModel, Decoded, decode_batches
from dllm_kernels.decode.together import DecodeResult, DecodeStep, Model, decode, iter_decode

__all__ = [
    "BlockModel",
    "DecodeResult",
    "DecodeStep",
    "Decoded",
    "Model",
    "decode",
    "decode_batches",
    "iter_decode",
]
