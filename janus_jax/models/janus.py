"""Janus: two visual encoders around one autoregressive transformer (arXiv 2410.13848, 2501.17811).

Dims: B batch, T tokens, N images, S picture side, P image tokens of a picture, D width,
V text vocabulary, K image codes.

Understanding: SigLIP features pass an aligner and take the place of token embeddings.
Generation: image codes have their own embedding table and aligner going in, and their own head
coming out. The VQ tokenizer always runs in float32: it costs next to nothing beside the
language model, and colours shift visibly in half precision.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from janus_jax.config import JanusConfig
from janus_jax.models.adaptors import Aligner, ImageHead
from janus_jax.models.llama import Llama
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQTokenizer
from janus_jax.nn.cache import KVCache
from janus_jax.nn.layers import Embedding, tap
from janus_jax.sharding import constrain

Taps = dict[str, jax.Array] | None


class JanusModel(nnx.Module):
    """The whole model; every method is a pure function of the parameters and its arguments.

    Use it through `janus_jax.functional`, which works on `(graphdef, params)`.

    Args:
      config: the architecture.
      rngs: initialisation keys.
      dtype: compute dtype of the towers and the language model.
      param_dtype: storage dtype of all parameters.
    """

    def __init__(
        self,
        config: JanusConfig,
        rngs: nnx.Rngs,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ):
        kwargs: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        width = config.llm.width
        self.vision = Siglip(rngs, config.vision, **kwargs)
        self.aligner = Aligner(rngs, config.vision.width, width, axis="embed", **kwargs)
        self.gen_embed = Embedding(
            rngs,
            config.vq.codebook_size,
            config.vq.codebook_dim,
            (None, None),
            init=initializers.normal(1.0),
            **kwargs,
        )
        self.gen_aligner = Aligner(rngs, config.vq.codebook_dim, width, axis=None, **kwargs)
        self.image_head = ImageHead(rngs, width, config.vq.codebook_size, **kwargs)
        self.llm = Llama(rngs, config.llm, **kwargs)
        self.vq = VQTokenizer(rngs, config.vq, dtype=jnp.float32, param_dtype=param_dtype)

    def encode_image(
        self, pixels: Float[Array, "N S S 3"], taps: Taps = None
    ) -> Float[Array, "N P D"]:
        """Normalised pictures [N, S, S, 3] -> features in the language model's space [N, P, D]."""
        return tap(taps, "aligner", self.aligner(self.vision(pixels, taps)))

    def embed(
        self,
        tokens: Int[Array, "B T"],
        image_features: Float[Array, "N P D"] | None = None,
        image_index: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Input embeddings of text with images among it.

        Args:
          tokens: [B, T] int32 text ids; slots of images hold any id.
          image_features: [N, P, D] from `encode_image`, or None for text alone.
          image_index: [B, T] int32, the row of `image_features.reshape(N * P, D)` that stands at
            each position, or -1 where the token itself does.

        Returns:
          [B, T, D].
        """
        x = self.llm.embed(tokens)
        if image_features is not None and image_index is not None:
            rows = image_features.reshape(-1, image_features.shape[-1]).astype(x.dtype)
            images = jnp.take(rows, jnp.maximum(image_index, 0), axis=0, mode="clip")
            x = jnp.where((image_index >= 0)[..., None], images, x)
        return constrain(x, "batch", "length", None)

    def embed_image_tokens(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings [B, T, D] of generated image codes [B, T]."""
        return self.gen_aligner(self.gen_embed(ids))

    def hidden(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        taps: Taps = None,
    ) -> Float[Array, "B T D"]:
        """Causal hidden states [B, T, D] after the final norm.

        Args:
          x: [B, T, D] input embeddings.
          positions: [B, T] int32.
          mask: [B, T] bool, True for real tokens (padding is never attended).
          taps: filled with every layer's output when given.
        """
        return self.llm.hidden(x, positions, mask, taps)[0]

    def text_logits(self, hidden: Float[Array, "*rows D"]) -> Float32[Array, "*rows V"]:
        """[..., D] -> [..., V] float32."""
        return self.llm.logits(hidden)

    def image_logits(self, hidden: Float[Array, "*rows D"]) -> Float32[Array, "*rows K"]:
        """[..., D] -> [..., K] float32."""
        return self.image_head(hidden)

    def prefill(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        cache_length: int,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Runs a prompt and keeps its keys and values.

        Args:
          x: [B, T, D] input embeddings, rows padded on the left.
          positions: [B, T] int32.
          mask: [B, T] bool.
          cache_length: slots of the cache, prompt included.

        Returns:
          Hidden states [B, T, D] and the cache.
        """
        h, keys_values = self.llm.hidden(x, positions, mask)
        return h, KVCache.from_prefill(keys_values, mask, cache_length)

    def decode_step(
        self, x: Float[Array, "B 1 D"], positions: Int[Array, "B 1"], cache: KVCache
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """One more token for each row: [B, 1, D], positions [B, 1] -> ([B, 1, D], cache)."""
        return self.llm.decode_step(x, positions, cache)

    def extend(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """T more tokens for each row; see `Llama.extend`."""
        return self.llm.extend(x, positions, mask, cache)

    def vq_encode(self, pixels: Float[Array, "B S S 3"], taps: Taps = None) -> Int32[Array, "B P"]:
        """Pictures [B, S, S, 3] in [-1, 1] -> codes [B, P] int32, row-major."""
        return self.vq.encode(pixels, taps)

    def vq_decode(self, ids: Int[Array, "B P"], taps: Taps = None) -> Float32[Array, "B S S 3"]:
        """Codes [B, P] -> pictures [B, S, S, 3] float32, about [-1, 1], not clipped."""
        return self.vq.decode(ids, taps)
