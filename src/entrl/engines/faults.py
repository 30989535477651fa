"""What can go wrong between a trainer and its vLLM servers. Each message names the replica and the next move."""


class RolloutError(RuntimeError):
    """Completions could not be had as asked; nothing was returned, so nothing can be trained on by mistake."""


class ReplicaMismatch(RolloutError):
    """A server answers, but it is not the one this run needs: key, base model, adapter rank or log-probs mode."""


class AdapterRefused(RolloutError):
    """A server could not load an adapter: cut short, of another rank, or made for another model."""


class StaleVersion(RolloutError):
    """A completion came, or would come, from another adapter version than the one asked for."""


class NoReplicaLeft(RolloutError):
    """Every replica failed more often in a row than `retries` allows."""
