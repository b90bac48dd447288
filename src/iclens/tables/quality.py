"""QualityTable, FidelityTable, DensityTable: how faithful each SAE is to the model it is used on."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class QualityTable(Table):
    """One row per SAE, measured on tokens that it was not trained on; `saes.quality` defines each figure."""

    KEY = ("site",)
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "d_sae": Column("int", "number of latents"),
        "k": Column("float", "active latents that the SAE allows per token; NaN where it sets no number"),
        "l0": Column("float", "mean number of active latents per token"),
        "fvu": Column("float", "fraction of variance unexplained, over all measured tokens"),
        "fvu_pre": Column("float", "the same over the `pre` positions only, about their own mean"),
        "ce_base": Column("float", "next-token cross-entropy of the model as it is, nats per token"),
        "ce_spliced": Column("float", "the same with the site replaced by its reconstruction"),
        "ce_zeroed": Column("float", "the same with the site set to zero"),
        "ce_recovered": Column("float", "(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base), all next tokens"),
        "ce_recovered_pre": Column("float", "the same over predictions made at `pre` only"),
        "kl": Column("float", "KL(model ‖ model with the reconstruction), nats per prediction"),
        "kl_pre": Column("float", "the same over predictions made at `pre` only"),
        "dead": Column("float", "fraction of latents active on none of the measured tokens"),
        "n_tokens": Column("int", "tokens measured"),
        "mismatch": Column("str", "in what the SAE does not fit the model, used all the same; else empty"),
        "reason": Column("str", "why a figure is NaN; empty when none is"),
    }


class FidelityTable(Table):
    """One row per SAE and role, the role `all` standing for every measured token."""

    KEY = ("site", "role")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "role": Column("str", "which token of each example; `all` for every measured token"),
        "l0": Column("float", "mean number of active latents per token"),
        "fvu": Column("float", "fraction of variance unexplained, about the role's own mean"),
        "kl": Column("float", "KL(model ‖ model with the reconstruction) of predictions made there, nats"),
        "ce_base": Column("float", "next-token cross-entropy there of the model as it is, nats"),
        "ce_spliced": Column("float", "the same with the site replaced by its reconstruction everywhere"),
        "ce_zeroed": Column("float", "the same with the site set to zero everywhere"),
        "ce_recovered": Column("float", "(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base)"),
        "n_tokens": Column("int", "tokens measured"),
        "reason": Column("str", "why a figure is NaN; empty when none is"),
    }


class DensityTable(Table):
    """Histogram of latents by density, one row per SAE and bin; dead latents in the first, `high` 0."""

    KEY = ("site", "low")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "low": Column("float", "densities above this (share of measured tokens on which a latent is active)"),
        "high": Column("float", "up to and including this"),
        "n_latents": Column("int", "latents in the bin"),
    }
