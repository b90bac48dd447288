"""Read: what numbers and concepts can be read from latents, one by one or together."""
