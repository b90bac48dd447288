"""Our site names mean what TransformerLens means by them: values equal TransformerBridge's cache."""

from pathlib import Path

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from iclens.core import HOOKS, Site
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet


def test_sites_equal_the_cache_of_the_same_names(
    tiny_folder: Path, tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    wrapped = load_model(tiny_folder)
    bridge = TransformerBridge.boot_transformers(
        str(tiny_folder), hf_model=wrapped.network, tokenizer=wrapped.tokenizer, device="cpu"
    )
    _, cache = bridge.run_with_cache(torch.as_tensor(prompts.tokens))
    sites = [Site(layer, hook) for layer in range(tiny_model.n_blocks) for hook in HOOKS]
    ours = record(tiny_model, prompts.tokens, sites, np.arange(prompts.tokens.shape[1]))
    for site in sites:
        theirs = cache[str(site)].detach().numpy().reshape(ours[site].shape)  # z is [… head d_head] there
        # entries come from sums of much larger terms, so rounding goes with the site's size, not with theirs
        atol = 1e-5 * float(np.abs(theirs).max())
        np.testing.assert_allclose(ours[site], theirs, rtol=0, atol=atol, err_msg=str(site))
