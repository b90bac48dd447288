"""What does the page of a prompt show? Run A and run B side by side: tokens, latents, beliefs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptsView:
    """All prompts that are shown."""
