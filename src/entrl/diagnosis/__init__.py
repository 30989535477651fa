"""What is wrong with a run, and what to change: one table of rules, for watchdog, advice and report."""
