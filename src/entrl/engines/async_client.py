"""TRL's asynchronous client, for servers started by `entrl serve`: with a key, and without development endpoints.

TRL's `VLLMClient` sends no key, and reads what a server is from `/server_info`, which vLLM opens only together with
`/collective_rpc` and others that ask for no key (VLLM_SERVER_DEV_MODE). Our middleware answers the same question under
the key. TRL also pauses the server around every sync; where only adapters are synced nothing needs to pause, because a
new version is a new name and requests in flight keep theirs. So these servers run with those endpoints closed.
"""

from typing import Any

import httpx
from trl.experimental.async_grpo.vllm_client import VLLMClient

from entrl.engines.faults import AdapterRefused, ReplicaMismatch
from entrl.engines.servers import INFO_PATH, PROCESSED

CONTROL_TIMEOUT = 60.0  # seconds, for questions that need no work


class AsyncClient(VLLMClient):
    """`VLLMClient` of a server that may ask for a key.

    adapters_only: syncs send adapters, so `pause` and `resume` do nothing. Set once that is decided.
    """

    def __init__(self, server_url: str, server_timeout: float = 240.0, *, api_key: str | None = None) -> None:
        super().__init__(server_url, server_timeout)
        self.adapters_only = False
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._info: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """What our middleware says of the server; empty where there is none. Raises ReplicaMismatch on a wrong key."""
        if self._info is not None:
            return self._info
        answer = self._ask("GET", INFO_PATH, CONTROL_TIMEOUT)
        info = dict(answer.json()) if answer.status_code == 200 else {}
        self._info = info
        return info

    def get_server_info(self) -> dict[str, Any]:
        """As TRL reads it: of our middleware, else of vLLM's development endpoint."""
        told = self.told()
        if not told:
            return super().get_server_info()
        lora = {"max_lora_rank": told["max_lora_rank"], "max_loras": told["max_loras"]}
        return {
            "lora_config": lora if told["max_lora_rank"] else None,
            "parallel_config": {"data_parallel_size": told["data_parallel_size"]},
            "model_config": {"dtype": f"torch.{told['dtype']}", "logprobs_mode": told["logprobs_mode"]},
        }

    def get_dtype(self) -> str:
        return self.get_server_info()["model_config"]["dtype"]

    def get_max_model_len(self) -> int:
        answer = self._ask("GET", "/v1/models", CONTROL_TIMEOUT)
        answer.raise_for_status()
        return answer.json()["data"][0]["max_model_len"]

    def load_lora_adapter(self, lora_name: str, lora_path: str, timeout: int = 1800) -> None:
        body = {"lora_name": lora_name, "lora_path": lora_path, "load_inplace": False}
        answer = self._ask("POST", "/v1/load_lora_adapter", timeout, json=body)
        if answer.status_code != 200:
            raise AdapterRefused(
                f"{self.server_url} did not load adapter {lora_name} from {lora_path} ({answer.status_code} "
                f"{answer.text}); start it with `entrl serve`, where it can read that folder"
            )

    def unload_lora_adapter(self, lora_name: str, timeout: int = 1800) -> None:
        self._ask("POST", "/v1/unload_lora_adapter", timeout, json={"lora_name": lora_name})

    def pause(self, timeout: int = 1800) -> None:
        if not self.adapters_only:
            super().pause(timeout)

    def resume(self, timeout: int = 1800) -> None:
        if not self.adapters_only:
            super().resume(timeout)

    def problems(self, *, temperature: float, fingerprint: str | None, record: bool) -> list[str]:
        """Why this server's completions must not be trained on; empty = nothing is known against it."""
        mode, told = self.get_server_info()["model_config"].get("logprobs_mode"), self.told()
        out = []
        if mode != PROCESSED and temperature != 1.0:
            out.append(
                f"{self.server_url} reports {mode}, log-probs before the temperature of {temperature}, so every "
                f"importance ratio would be wrong; start it with `entrl serve`, or with --logprobs-mode {PROCESSED}"
            )
        if fingerprint and told.get("weights") and told["weights"] != fingerprint:
            out.append(
                f"{self.server_url} serves other base weights ({told.get('root')}) than the trainer's; start it with "
                "the trainer's model"
            )
        if record and not told.get("recorder"):
            out.append(
                f"{self.server_url} records no entropies; start it with `entrl serve`, or set sampler_entropies=False "
                "where no reward reads them"
            )
        return out

    def _ask(self, method: str, path: str, timeout: float, **kwargs: Any) -> httpx.Response:
        # As everywhere here, proxies named in the environment are not used.
        with httpx.Client(headers=self._headers, timeout=timeout, trust_env=False) as client:
            answer = client.request(method, self.server_url + path, **kwargs)
        if answer.status_code == 401:
            raise ReplicaMismatch(
                f"{self.server_url} refused the API key; set the variable named by api_key_env to the key it was "
                "started with (`entrl serve` prints the file that holds it)"
            )
        return answer
