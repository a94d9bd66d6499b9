"""Where questions go."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: The variable is huggingface_hub's own, for mirrors.
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Azure's public cloud and the Hub; registries are named by their images."""

    arm: str = "https://management.azure.com"
    prices: str = "https://prices.azure.com"
    hub: str = HUB


PUBLIC = Endpoints()
