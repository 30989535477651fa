"""entrl: entropy-aware rewards and entropy controllers for RL post-training, on TRL."""

__version__ = "0.1.0"
