"""The parts the models are made of: layers, rotary positions, attention, the KV cache."""
