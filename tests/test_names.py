"""Sites, roles and positions."""

import pytest

from iclens.core import ROLES, IclensError, Site, SiteError, check_role, nearest, position, sae_site


@pytest.mark.parametrize("text", ["blocks.14.hook_resid_post", "L14.resid_post"])
def test_both_forms_of_a_site(text: str) -> None:
    site = Site.parse(text)
    assert site == Site(14, "resid_post")
    assert (str(site), site.short) == ("blocks.14.hook_resid_post", "L14.resid_post")
    assert Site.parse(str(site)) == Site.parse(site.short)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("blocks.4.hook_in", "L4.resid_pre"), ("blocks.4.hook_out", "L4.resid_post"),
        ("blocks.4.ln2.hook_in", "L4.resid_mid"), ("blocks.4.attn.hook_out", "L4.attn_out"),
        ("blocks.4.mlp.hook_out", "L4.mlp_out"), ("blocks.4.mlp.hook_in", "L4.mlp_in"),
        ("blocks.4.attn.o.hook_in", "L4.z"), ("model.layers.14", "L14.resid_post"),
        ("model.layers.14.mlp", "L14.mlp_out"), ("model.layers.14.self_attn", "L14.attn_out"),
        ("layers.0", "L0.resid_post"), ("layers.0.mlp", "L0.mlp_out"), ("layer_24", "L24.resid_post"),
        ("transformer.h.3", "L3.resid_post"), ("h.3.attn", "L3.attn_out"),
        ("gpt_neox.layers.3.attention", "L3.attn_out"), ("gpt_neox.layers.3.mlp", "L3.mlp_out"),
        ("model.language_model.layers.9", "L9.resid_post"), ("model.embed_tokens", "L0.resid_pre"),
        ("embed_tokens", "L0.resid_pre"), ("hook_embed", "L0.resid_pre"),
        ("blocks.2.ln1.hook_in", "L2.resid_pre"), ("model.layers.2.mlp.down_proj", "L2.mlp_out"),
        ("model.layers.2.self_attn.o_proj", "L2.attn_out"), ("model.layers.2.output", "L2.resid_post"),
        ("model.layers.2.mlp.output", "L2.mlp_out"), ("model.layers[12].mlp", "L12.mlp_out"),
        ("model.layers[2].self_attn.o_proj.output", "L2.attn_out"), ("resid_post_layer_2", "L2.resid_post"),
        ("mlp_out_layer_11", "L11.mlp_out"),
        ("blocks.7.hook_resid_mid", "L7.resid_mid"), ("blocks.7.hook_attn_out", "L7.attn_out"),
    ],
)  # fmt: skip
def test_names_that_others_use_are_sites(text: str, short: str) -> None:
    assert Site.parse(text).short == short


def test_what_an_mlp_reads_has_the_name_of_its_own_hook() -> None:
    site = Site(3, "mlp_in")
    assert (str(site), site.short) == ("blocks.3.mlp.hook_in", "L3.mlp_in")
    assert Site.parse(str(site)) == Site.parse("L3.mlp_in") == site


def test_what_heads_write_has_the_name_of_its_own_hook() -> None:
    site = Site(3, "z")
    assert (str(site), site.short) == ("blocks.3.attn.hook_z", "L3.z")
    assert Site.parse(str(site)) == Site.parse("L3.z") == site


def test_an_sae_reads_any_site_but_the_heads_outputs() -> None:
    assert sae_site("blocks.3.hook_attn_out") == Site(3, "attn_out")
    with pytest.raises(SiteError, match="hook_z"):
        sae_site("L3.z")


@pytest.mark.parametrize(
    "text",
    [
        "blocks.3.hook_mlp_in",
        "blocks.3.hook_z",
        "blocks.3.attn.hook_q",
        "blocks.3.mlp.hook_z",
        "",
        "L4",
        "blocks.4",
        "L-1.mlp_out",
        "blocks.x.hook_mlp_out",
        "L4.mlp_out.extra",
        "blocks.4.hook_out.extra",
        "blocks.4.attn.hook_in",
        "blocks.4.ln1.hook_out",
        "model.layers.4.mlp.input",
        "model.layers[x].mlp",
        "model.layers[4.mlp",
        "model.layers.4.mlp.act_fn",
        "model.layers.x",
        "layers4",
        "sae",
    ],
)
def test_not_a_site_name(text: str) -> None:
    with pytest.raises(SiteError, match="not a site name"):
        Site.parse(text)


def test_an_unknown_hook_is_told_the_nearest() -> None:
    with pytest.raises(SiteError, match="resid_post"):
        Site.parse("L4.resid_pots")
    with pytest.raises(SiteError, match="negative"):
        Site(-1, "mlp_out")


def test_positions() -> None:
    assert [position(role, 0) for role in ROLES] == [2, 3, 4, 5, 6, 7]
    assert position("pre", 12) == 2 + 6 * 12 + 3
    with pytest.raises(SiteError, match="lab"):
        check_role("label")


def test_an_error_is_one_line_with_an_exit_code() -> None:
    problem = IclensError("this", "that", "Do it.")
    assert str(problem) == "this: that. Do it."
    assert problem.exit_code == 2
    assert nearest("pre", ["post", "pro"]).startswith("Nearest: pro")
    assert nearest("pre", []) == "Nothing is available"
