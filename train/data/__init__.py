"""Training data: the emoji pictures, their names, the split and the tasks made from them."""
