"""What a user writes and how it is read: YAML, typed groups, overrides, names, paths, secrets, JSON lines."""
