"""NVAE, a deep hierarchical VAE (Vahdat & Kautz 2020), for images of any size, channels and bits."""

from nvae.config import NVAEConfig
from nvae.model import NVAE
from nvae.objective import NVAEObjective, ObjectiveConfig

__all__ = ["NVAE", "NVAEConfig", "NVAEObjective", "ObjectiveConfig"]
