"""Whole data sets: what an image costs, what machines would do by that, and the memory of a process over many."""
