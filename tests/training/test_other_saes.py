"""sae_lens' other architectures in our loop."""

from itertools import pairwise

import pytest
import torch
from sae_lens import JumpReLUSAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from iclens.core import ConfigError, SaeError, Site
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.other_saes import LensStep, build_step, check_spec

DECLARED = {
    "standard": {"l1_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.1, "apply_b_dec_to_input": False},
    "jumprelu": {"l0_coefficient": 0.2, "apply_b_dec_to_input": False},
    "matryoshka_batchtopk": {"matryoshka_widths": [8, 16], "topk_threshold_lr": 0.1},
    "transcoder": {"l1_coefficient": 0.1},
    "skip_transcoder": {"l1_coefficient": 0.1},
    "jumprelu_transcoder": {"l0_coefficient": 0.1},
}


def settings(**changes: float | str) -> Optimisation:
    return Optimisation.model_validate({"tokens": 1, "lr": 0.01} | changes)


def spec_of(architecture: str, **options: object) -> SaeSpec:
    target = Site(1, "mlp_out") if architecture.endswith("transcoder") else None
    k = 4 if architecture.endswith("topk") else None
    return SaeSpec(Site(1, "mlp_in"), target, 32, k, 0.01, 0, architecture, options)


def build(architecture: str, x: Tensor, y: Tensor, **changes: float | str) -> LensStep:
    spec = spec_of(architecture, **DECLARED[architecture])
    out = None if spec.target is None else Scaling.of(y)
    step = build_step(spec, settings(**changes), Scaling.of(x), out, x, "cpu")
    assert isinstance(step, LensStep)
    return step


@pytest.fixture
def x() -> Tensor:
    """Sparse sums of twelve directions far from the origin, in large units, [row d_in]."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(12, 8, generator=generator)
    amounts = torch.rand(512, 12, generator=generator) * (torch.rand(512, 12, generator=generator) < 0.2)
    return 300 + 50 * amounts @ directions


@pytest.fixture
def y(x: Tensor) -> Tensor:
    """A linear image of x, in other units and of another width, [row d_out]."""
    return 0.01 * x @ torch.randn(8, 6, generator=torch.Generator().manual_seed(5)) - 7


@pytest.mark.parametrize("architecture", DECLARED)
def test_every_architecture_trains_and_its_export_reads_raw_activations(
    architecture: str, x: Tensor, y: Tensor
) -> None:
    step = build(architecture, x, y)
    target = y if step.spec.target else None
    first = step.update(x, target, 1.0)
    last = [step.update(x, target, 1.0) for _ in range(80)][-1]
    assert last["fvu"] < 0.2 and last["fvu"] < first["fvu"]
    assert all(last[name].shape == () for name in ("fvu", "l0", "dead", "loss"))
    network = step.export()
    predicted = x if target is None else target
    with torch.no_grad():
        left = (predicted - network(x)).square().sum() / (predicted - predicted.mean(dim=0)).square().sum()
        l0 = float((network.encode(x) > 0).sum(dim=1).float().mean())
    near = 0.3 if architecture.startswith("matryoshka") else 0.1
    assert float(left) == pytest.approx(float(last["fvu"]), rel=near)
    assert l0 == pytest.approx(float(last["l0"]), rel=near)
    torch.testing.assert_close(network.W_dec.detach().norm(dim=1), torch.ones(32))


def test_matryoshka_is_exported_as_jumprelu(x: Tensor, y: Tensor) -> None:
    assert isinstance(build("matryoshka_batchtopk", x, y).export(), JumpReLUSAE)


def test_a_step_is_one_of_adam_on_sae_lens_own_loss(x: Tensor, y: Tensor) -> None:
    step = build("standard", x, y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=32, l1_coefficient=0.1))
    adam = torch.optim.Adam(own.parameters(), lr=0.01, betas=(0.9, 0.99))
    for number in range(5):
        done = own.training_forward_pass(
            TrainStepInput(step.scaling.apply(x), {"l1": 0.1}, None, number, is_logging_step=False)
        )
        adam.zero_grad()
        done.loss.backward()
        adam.step()
        found = step.update(x, None, 1.0)
        torch.testing.assert_close(found["loss"], done.loss.detach(), rtol=1e-5, atol=0)
    for name, p in own.named_parameters():
        torch.testing.assert_close(step.network.state_dict()[name], p.detach(), rtol=1e-4, atol=1e-5)


def test_a_coefficient_warms_up(x: Tensor, y: Tensor) -> None:
    for architecture in ("standard", "transcoder"):
        spec = spec_of(architecture, l1_coefficient=8.0, l1_warm_up_steps=4)
        out = None if spec.target is None else Scaling.of(y)
        step = build_step(spec, settings(), Scaling.of(x), out, x, "cpu")
        losses = [float(step.update(x, y if spec.target else None, 0.0)["loss"]) for _ in range(6)]
        rises = [after - before for before, after in pairwise(losses)]
        assert rises[:4] == pytest.approx([rises[0]] * 4, rel=1e-3)
        assert rises[0] > 0.1 and rises[4] == 0


@pytest.mark.parametrize("architecture", ["jumprelu", "matryoshka_batchtopk", "skip_transcoder"])
def test_a_restored_step_continues_bit_for_bit(architecture: str, x: Tensor, y: Tensor) -> None:
    whole = build(architecture, x, y, moment_dtype="bfloat16", gradient_clip=1.0, dead_after_tokens=2048)
    target = y if whole.spec.target else None
    for _ in range(5):
        whole.update(x, target, 1.0)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    other = build(architecture, x, y, moment_dtype="bfloat16", gradient_clip=1.0, dead_after_tokens=2048)
    other.restore(saved)
    for _ in range(5):
        whole.update(x, target, 1.0)
        other.update(x, target, 1.0)
    assert all(torch.equal(w, other.tensors()[name]) for name, w in whole.tensors().items())
    with pytest.raises(SaeError, match="'steps': missing"):
        other.restore({name: w for name, w in saved.items() if name != "steps"})


def test_first_weights_follow_from_the_seed_and_leave_the_global_generator(x: Tensor, y: Tensor) -> None:
    torch.manual_seed(1)
    one = build("gated", x, y).tensors()
    drawn = torch.randn(3)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.randn(3), drawn)
    torch.manual_seed(2)
    assert all(torch.equal(w, one[name]) for name, w in build("gated", x, y).tensors().items())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (spec_of("standard", l1_coeficient=1.0), "no such option. Nearest: l1_coefficient"),
        (spec_of("topk", l1_coefficient=1.0), "It has none"),
        (spec_of("standard", l1_coefficient="strong"), "'strong'. Input should be a valid number"),
        (spec_of("jumprelu", jumprelu_sparsity_loss_mode="stepp"), "Input should be 'step'"),
        (spec_of("transcoder", l1_coefficient=None), "valid number"),
        (spec_of("standard", d_in=4), "no such option"),
        (SaeSpec(Site(1, "mlp_in"), Site(1, "mlp_out"), 8, None, 0.01, 0, "gated", {}), "its own site"),
        (spec_of("tok"), "unknown. Nearest: topk"),
    ],
)
def test_what_cannot_be_trained_is_refused(spec: SaeSpec, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_spec(spec)


@pytest.mark.parametrize("options", [{}, {"matryoshka_widths": [32]}, {"matryoshka_widths": [16, 8]}])
def test_matryoshka_needs_rising_widths(options: dict[str, object], x: Tensor) -> None:
    with pytest.raises(ConfigError):
        build_step(spec_of("matryoshka_batchtopk", **options), settings(), Scaling.of(x), None, x, "cpu")


def test_a_target_needs_its_scaling(x: Tensor) -> None:
    with pytest.raises(ConfigError, match="do not match"):
        build_step(spec_of("transcoder"), settings(), Scaling.of(x), None, x, "cpu")
