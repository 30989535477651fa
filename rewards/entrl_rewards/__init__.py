"""Rewards, one file each: the formula, a frozen dataclass of options, and a ready instance `reward` at the end."""
