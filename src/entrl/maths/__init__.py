"""Pure functions of tensors: signals, phases, windows, truncation, branching, credit per turn, difficulty."""
