"""Generation glue: what runs inside a vLLM engine; how servers are started, fed with adapters, asked for rollouts."""
