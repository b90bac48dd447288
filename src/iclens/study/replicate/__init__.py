"""Recorded observations run again on a model: one public function, `replicate.run.replicate_seed_post`."""
