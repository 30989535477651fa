"""What to train on next: pass rates of prompts, rules that weigh prompts by them, and draws that every rank repeats."""
