"""The kernels compiled for GPUs that need not be present: registers, spills, occupancy and the instruction mix."""
