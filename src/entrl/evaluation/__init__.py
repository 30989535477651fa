"""What a policy can do: the numbers of an evaluation."""
