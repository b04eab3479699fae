"""Readers of PyTorch weight files: no torch, nothing executed, every bound checked, no copies."""
