"""Supervised starts: cold starts, offline GRPO and DPO, and choosing the answers to learn from."""
