"""`EntropyGRPOTrainer`: thin overrides around TRL's methods, and the parts that do the work."""
