"""Sites, roles and positions."""

import pytest

from iclens.errors import IclensError, SiteError, nearest
from iclens.names import ROLES, Site, check_role, position, sae_site


@pytest.mark.parametrize("text", ["blocks.14.hook_resid_post", "L14.resid_post"])
def test_both_forms_of_a_site(text: str) -> None:
    site = Site.parse(text)
    assert site == Site(14, "resid_post")
    assert (str(site), site.short) == ("blocks.14.hook_resid_post", "L14.resid_post")
    assert Site.parse(str(site)) == Site.parse(site.short)


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
