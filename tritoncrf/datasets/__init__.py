"""Whole data sets: many images, each read, refined and written, spread over processes, GPUs or machines."""
