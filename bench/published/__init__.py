"""The published systems written again in NumPy, in float64, and the library's errors against them.

Each form is written from the formulas of the paper and of the authors' code, and shares no line with the library: dense
matrices instead of filters, loops over offsets instead of kernels. Derivatives are complex steps (`derivatives.py`), so
that no gradient is derived by hand. `systems.py` compares a form with the library, `report.py` makes the table.
"""
