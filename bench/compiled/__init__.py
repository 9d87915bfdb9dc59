"""What a GPU that need not be here has for the kernels: registers, spills, occupancy and the instruction mix."""
