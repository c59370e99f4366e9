"""(d) PyTorch's SGD on the same network and images, where PyTorch is installed."""
