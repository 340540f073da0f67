"""Decoding from prompt to answer, with and without the fused step: model, checkpoints, prompts, and what they took."""
