"""Entropy controllers: one file per algorithm, tensors in, tensors out; none of them sees a model or a trainer."""
