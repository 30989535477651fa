"""`EntropyAsyncGRPOTrainer`: entropy rewards and controllers on TRL's asynchronous trainer."""
