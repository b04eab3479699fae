"""Training: presets, steps, data, the loop. Depends on janus_jax, never the other way round."""
