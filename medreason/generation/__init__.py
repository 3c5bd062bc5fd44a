"""The generation engine: prefill, KV cache, decoding, packing, sampling, prefix sharing."""
