"""The published systems once more in NumPy, in float64, and how far the library is from them.

Each form is written from the formulas of its paper and of the authors' code, and shares no line with the library: dense
matrices where that has filters, loops over offsets where it has kernels. Their derivatives are complex steps
(`derivatives.py`), so no gradient is derived by hand twice. `systems.py` puts a form and the library's own beside each
other, `report.py` makes the table.
"""
