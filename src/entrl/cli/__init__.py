"""The command line: a file per group of commands, each with its arguments beside what it does."""
