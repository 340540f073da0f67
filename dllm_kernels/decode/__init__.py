"""Block decoding with any model: `decode` takes a batch through its blocks together, with a model of whole sequences;
`BatchDecoder` keeps slots filled from a queue, each at a block of its own, with a model that caches finished blocks.
"""

from dllm_kernels.decode.batches import BatchDecoder, BlockModel, Decoded
from dllm_kernels.decode.together import DecodeResult, DecodeStep, Model, decode, iter_decode

__all__ = [
    "BatchDecoder",
    "BlockModel",
    "DecodeResult",
    "DecodeStep",
    "Decoded",
    "Model",
    "decode",
    "iter_decode",
]
