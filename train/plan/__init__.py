"""`janus-jax plan`: what a preset needs of a pod, and what the TPU compiler makes of it."""
