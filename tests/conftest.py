"""One thread, no network, the same examples every time."""

import os

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
)

from hypothesis import settings

settings.register_profile("iclens", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("iclens")
