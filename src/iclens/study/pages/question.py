"""What does a study ask? The sentence that opens its index."""

QUESTION = (
    "Does in-context learning add features, one update per example, and which features? {task} is shown in "
    "context; every latent of {n} SAEs is followed over the examples, tested, identified and patched."
)
