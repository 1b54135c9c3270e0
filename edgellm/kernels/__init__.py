"""Native kernels and their thin Python face."""
