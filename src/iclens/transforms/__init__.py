"""Identify: which latents code which transformation concepts."""
