"""How many numbers an architecture's parameters are, by arithmetic: nothing is built for it."""

from __future__ import annotations

from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig


def parameter_count(config: JanusConfig) -> int:
    """Numbers in all parameters of an architecture, by arithmetic alone."""
    vision, vq, llm = config.vision, config.vq, config.llm
    aligner = _linear(vision.width, llm.width) + _linear(llm.width, llm.width)
    gen_aligner = _linear(vq.codebook_dim, llm.width) + _linear(llm.width, llm.width)
    head = _linear(llm.width, llm.width) + _linear(llm.width, vq.codebook_size)
    gen_embed = vq.codebook_size * vq.codebook_dim
    adaptors = aligner + gen_aligner + head + gen_embed
    return siglip_count(vision) + vq_count(vq) + llama_count(llm) + adaptors


def llama_count(llm: LlamaConfig) -> int:
    """Numbers in the parameters of a language model with an untied head."""
    attention = 2 * llm.width * llm.head_dim * (llm.num_heads + llm.num_kv_heads)
    layer = attention + 3 * llm.width * llm.mlp_dim + 2 * llm.width
    return llm.depth * layer + 2 * llm.vocab_size * llm.width + llm.width


def siglip_count(vision: SiglipConfig) -> int:
    """Numbers in the parameters of a vision tower."""
    w = vision.width
    block = 4 * _linear(w, w) + _linear(w, vision.mlp_dim) + _linear(vision.mlp_dim, w) + 4 * w
    patches = _linear(3 * vision.patch_size**2, w) + vision.num_patches * w
    return vision.depth * block + patches + 2 * w


def vq_count(vq: VQConfig) -> int:
    """Numbers in the parameters of a VQ tokenizer."""
    channels = [vq.base_channels * m for m in vq.channel_multipliers]
    deepest, z, c = channels[-1], vq.latent_channels, vq.codebook_dim

    def stack(levels: list[int], blocks: int, first: int, attention_at: int) -> int:
        """Levels of a conv stack in the order they run, and the resampling between them."""
        total, before = 0, first
        for i, width in enumerate(levels):
            for _ in range(blocks):
                total += _res_block(before, width)
                total += _attention(width) if i == attention_at else 0
                before = width
            total += _conv(width, width) if i < len(levels) - 1 else 0
        return total

    last = len(channels) - 1
    middle = 2 * _res_block(deepest, deepest) + _attention(deepest)
    encoder = stack(channels, vq.num_res_blocks, vq.base_channels, last) + _conv(
        3, vq.base_channels
    )
    encoder += middle + 2 * deepest + _conv(deepest, z)
    decoder = stack(channels[::-1], vq.num_res_blocks + 1, deepest, 0) + _conv(z, deepest)
    decoder += middle + 2 * channels[0] + _conv(channels[0], 3)
    return encoder + decoder + _linear(z, c) + _linear(c, z) + vq.codebook_size * c


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _conv(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs + outputs


def _attention(width: int) -> int:
    return 4 * _linear(width, width) + 2 * width


def _res_block(inputs: int, outputs: int) -> int:
    shortcut = _linear(inputs, outputs) if inputs != outputs else 0
    return _conv(inputs, outputs) + _conv(outputs, outputs) + 2 * (inputs + outputs) + shortcut
