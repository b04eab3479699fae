"""What a conversion writes: our model directory, or a PyTorch layout as safetensors."""
