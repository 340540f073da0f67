"""Post-processing of diffusion-LLM block decoding as one fused operation.

Importing this package loads PyTorch, but neither Triton nor any inference engine.
"""

from dllm_kernels.decode import BatchDecoder, BlockModel, Decoded, DecodeResult, DecodeStep, decode, iter_decode
from dllm_kernels.post_process import (
    dllm_post_process_fused,
    dllm_post_process_reference,
    warmup,
    workspace_size,
)

__all__ = [
    "BatchDecoder",
    "BlockModel",
    "DecodeResult",
    "DecodeStep",
    "Decoded",
    "decode",
    "dllm_post_process_fused",
    "dllm_post_process_reference",
    "iter_decode",
    "warmup",
    "workspace_size",
]

__version__ = "0.1.0"
