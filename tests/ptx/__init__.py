"""The PTX that Triton compiles, executed and checked on a CPU; `tests/ptxemu.py` is its command, and says what for.

A kernel's PTX becomes basic blocks (`program`), a block a Python function over NumPy arrays (`blocks`, out of
`computing` and `accessing`, by the operations of `arithmetic`), and a launch a `Run`, which steps all threads through
the blocks and supplies what these call: `memory`, `warps`, `matrices`, and their `checks`. `launch` stands where Triton
expects a GPU's driver.
"""
