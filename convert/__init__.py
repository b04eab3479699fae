"""Conversion of published PyTorch weights to and from Janus-JAX model directories."""
