"""Whole data sets: the cost of an image, the predicted throughput of machines, and the memory of a process over many
images."""
