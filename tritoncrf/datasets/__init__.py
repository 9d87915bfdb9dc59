"""Whole data sets: many images, each in the stages read, refine and write, over processes, GPUs or machines."""
