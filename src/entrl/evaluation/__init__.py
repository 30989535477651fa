"""What a policy can do: how its answers are asked for and scored, and the numbers of an evaluation."""
