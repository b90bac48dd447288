"""Label: which latents are granted a concept, against its confounds, and how steady that is."""
