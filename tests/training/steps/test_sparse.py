"""The TopK and BatchTopK step, held to a dense one written with autograd."""

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUTranscoder, TopKSAE
from torch import Tensor
from torch.nn import functional as F

from iclens.core import SaeError, Site
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.topk import Encoder, SparseStep, choose_batch_topk, choose_topk, reconstruct

NARROW = {"encode_dtype": "bfloat16", "moment_dtype": "bfloat16"}


def settings(**changes: float | str | None) -> Optimisation:
    return Optimisation.model_validate({"tokens": 1, "lr": 0.01} | changes)


def build(
    x: Tensor, y: Tensor | None = None, architecture: str = "topk", k: int = 4, **changes: float | str | None
) -> SparseStep:
    declared = settings(**changes)
    target = None if y is None else Site(1, "mlp_out")
    spec = SaeSpec(Site(1, "mlp_in"), target, 32, k, declared.lr, 0, architecture, {})
    return SparseStep(spec, declared, Scaling.of(x), None if y is None else Scaling.of(y), x, "cpu")


@pytest.fixture
def x() -> Tensor:
    """Sparse sums of twelve directions far from the origin, in large units, [row d_in]."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(12, 8, generator=generator)
    amounts = torch.rand(2048, 12, generator=generator) * (torch.rand(2048, 12, generator=generator) < 0.2)
    return 300 + 50 * amounts @ directions


@pytest.fixture
def y(x: Tensor) -> Tensor:
    """A linear image of x, in other units and of another width, [row d_out]."""
    return 0.01 * x @ torch.randn(8, 6, generator=torch.Generator().manual_seed(5)) - 7


def gate(z: Tensor, k: int, architecture: str) -> Tensor:
    """The definition: a of pre-activations z, dense, [row d_sae]."""
    if architecture == "topk":
        top = z.topk(k, dim=1)
        return torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
    top = z.relu().flatten().topk(k * len(z))
    return torch.zeros_like(z).flatten().scatter(0, top.indices, top.values).view_as(z)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("d_out", [8, 6])
def test_gradients_are_those_of_dense_autograd(
    dtype: torch.dtype, near: float, architecture: str, d_out: int
) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    weights = {"encoder": normal(64, 8), "b_enc": normal(64) - 4, "decoder": normal(64, d_out)}
    weights["b_dec"] = normal(d_out)
    u = normal(100, 8)
    v = u if d_out == 8 else normal(100, d_out)
    encoder = Encoder(weights["encoder"], weights["b_enc"], 32)
    active = choose_topk(encoder, u, 5) if architecture == "topk" else choose_batch_topk(encoder, u, 5, 0.0)
    loss, error, gradients = reconstruct(weights, u, v, active)
    dense = {name: w.clone().requires_grad_() for name, w in weights.items()}
    a = gate(u @ dense["encoder"].T + dense["b_enc"], 5, architecture)
    v_hat = a @ dense["decoder"] + dense["b_dec"]
    want = (v - v_hat).square().sum(dim=1).mean() / d_out
    want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=near, atol=near)
    torch.testing.assert_close(error, (v - v_hat).detach(), rtol=near, atol=near)
    assert (a == 0).all(dim=0).any() and (a != 0).any()
    for name, w in dense.items():
        torch.testing.assert_close(gradients[name], w.grad, rtol=near, atol=near)


class Dense:
    """The same training, written plainly: dense autograd, torch's Adam, everything explicit."""

    def __init__(self, step: SparseStep) -> None:
        self.step, self.idle = step, torch.zeros(32, dtype=torch.long)
        self.weights = {name: w.clone().requires_grad_() for name, w in step.weights.items()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=step.spec.lr, betas=(0.9, 0.99), fused=False)

    def update(self, x: Tensor, y: Tensor | None) -> None:
        step, weights, declared = self.step, self.weights, self.step.settings
        u = step.scaling.apply(x)
        v = u if y is None or step.target_scaling is None else step.target_scaling.apply(y)
        z = u @ weights["encoder"].T + weights["b_enc"]
        a = gate(z, step.k, step.spec.architecture)
        error = v - a @ weights["decoder"] - weights["b_dec"]
        loss = error.square().sum(dim=1).mean() / v.shape[1]
        dead = self.idle >= declared.dead_after_tokens
        if dead.any():
            top = z.masked_fill(~dead, -torch.inf).topk(min(declared.aux_k, int(dead.sum())), dim=1)
            e_hat = torch.zeros_like(z).scatter(1, top.indices, top.values) @ weights["decoder"]
            left = error.detach()
            loss = loss + declared.aux_coefficient * (e_hat - left).square().sum() / left.square().sum()
        self.adam.zero_grad()
        loss.backward()
        W_dec = weights["decoder"]
        assert W_dec.grad is not None
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
        if declared.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(list(weights.values()), declared.gradient_clip)
        self.adam.step()
        with torch.no_grad():
            W_dec.copy_(F.normalize(W_dec, dim=1))
        self.idle = torch.where((a > 0).any(dim=0), 0, self.idle + len(x))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
@pytest.mark.parametrize("longest", [None, 0.05])
def test_twenty_steps_are_those_of_a_dense_trainer(
    x: Tensor, y: Tensor, architecture: str, kind: str, longest: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclens.training.topk.DEAD_EVERY", 1)
    target = y if kind == "transcoder" else None
    step = build(
        x, target, architecture, dead_after_tokens=256, aux_k=2, aux_coefficient=1.0, gradient_clip=longest,
        encode_chunk=100,
    )  # fmt: skip
    step.weights["b_enc"][:6] = -4.0
    dense, most_dead = Dense(step), 0.0
    for number in range(20):
        rows = slice(128 * (number % 16), 128 * (number % 16 + 1))
        found = step.update(x[rows], None if target is None else target[rows], 1.0)
        dense.update(x[rows], None if target is None else target[rows])
        most_dead = max(most_dead, float(found["dead"]))
    assert most_dead > 0.1
    torch.testing.assert_close(step.idle, dense.idle)
    for name, w in dense.weights.items():
        torch.testing.assert_close(step.weights[name], w.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("changes", [{}, NARROW])
def test_training_finds_sparse_structure(x: Tensor, architecture: str, changes: dict[str, str]) -> None:
    step = build(x, None, architecture, **changes)
    first = step.update(x, None, 1.0)
    last = [step.update(x[:512], None, 1.0) for _ in range(80)][-1]
    assert last["fvu"] < 0.2 * first["fvu"] and last["l0"] <= 4
    assert all(value.shape == () for value in last.values())
    torch.testing.assert_close(step.weights["decoder"].norm(dim=1), torch.ones(32))


def test_a_rate_of_zero_leaves_the_weights(x: Tensor) -> None:
    step = build(x)
    before = {name: w.clone() for name, w in step.weights.items()}
    step.update(x, None, 0.0)
    for name, w in before.items():
        torch.testing.assert_close(step.weights[name], w)


def test_first_weights_follow_from_the_seed_alone(x: Tensor) -> None:
    torch.manual_seed(1)
    one = build(x).weights
    torch.manual_seed(2)
    assert all(torch.equal(w, one[name]) for name, w in build(x).weights.items())
    assert build(x).update(x, None, 1.0)["fvu"] < 1


def test_dead_latents_are_found_every_sixteenth_step_and_learn_the_error(x: Tensor) -> None:
    step = build(x, dead_after_tokens=4096, aux_coefficient=1.0, lr=0.03)
    step.weights["b_enc"][:8] = -40.0
    metrics = [step.update(x, None, 0.0) for _ in range(17)]
    assert metrics[1]["dead"] >= 0.25 and metrics[15]["aux"] == 0 and metrics[16]["aux"] > 0
    assert step.dead[:8].all()
    encoder, decoder = (step.weights[name][:8].clone() for name in ("encoder", "decoder"))
    last = [step.update(x, None, 1.0) for _ in range(60)][-1]
    assert ((step.weights["encoder"][:8] - encoder).abs().amax(dim=1) > 0.01).all()
    assert ((step.weights["decoder"][:8] - decoder).abs().amax(dim=1) > 0.01).all()
    assert last["aux"] < 0.8 * metrics[16]["aux"]


def test_without_auxiliary_loss_dead_latents_stay(x: Tensor) -> None:
    step = build(x, dead_after_tokens=2048, aux_coefficient=0.0)
    step.weights["b_enc"][:8] = -1e4
    before = step.weights["encoder"][:8].clone()
    found = [step.update(x, None, 1.0) for _ in range(20)][-1]
    assert found["aux"] == 0 and step.dead[:8].all()
    assert torch.equal(step.weights["encoder"][:8], before)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_restored_step_continues_bit_for_bit(x: Tensor, architecture: str) -> None:
    whole = build(x, None, architecture, dead_after_tokens=4096, moment_dtype="bfloat16")
    for _ in range(20):
        whole.update(x, None, 1.0)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    other = build(x.flip(0), None, architecture, dead_after_tokens=4096, moment_dtype="bfloat16")
    other.restore(saved)
    for _ in range(20):
        left, right = whole.update(x, None, 0.7), other.update(x, None, 0.7)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert all(torch.equal(w, other.tensors()[name]) for name, w in whole.tensors().items())


def test_state_that_does_not_fit_is_refused(x: Tensor) -> None:
    step = build(x)
    with pytest.raises(SaeError, match="'idle': missing"):
        step.restore({name: w for name, w in step.tensors().items() if name != "idle"})
    with pytest.raises(SaeError, match=r"'b_enc': of shape \(3,\)"):
        step.restore(step.tensors() | {"b_enc": torch.zeros(3)})


def fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())


def test_an_exported_topk_sae_says_the_same_of_raw_activations(x: Tensor) -> None:
    step = build(x)
    for _ in range(30):
        step.update(x, None, 1.0)
    network, s = step.export(), step.scaling.factor
    assert isinstance(network, TopKSAE) and network.cfg.k == 4
    u = step.scaling.apply(x)
    a = gate(u @ step.weights["encoder"].T + step.weights["b_enc"], 4, "topk")
    with torch.no_grad():
        torch.testing.assert_close(network.encode(x) * s, a, rtol=1e-3, atol=2e-3)
        assert fvu(x, network(x)) == pytest.approx(float(step.update(x, None, 0.0)["fvu"]), rel=1e-3)
    torch.testing.assert_close(network.W_dec.detach().norm(dim=1), torch.ones(32))


def test_an_exported_batchtopk_sae_has_the_threshold_of_its_batches(x: Tensor) -> None:
    step = build(x, None, "batchtopk")
    for _ in range(160):
        found = step.update(x[:512], None, 1.0 if step.adam.steps < 60 else 0.0)
    network = step.export()
    assert isinstance(network, JumpReLUSAE)
    torch.testing.assert_close(
        network.threshold.detach(), torch.full((32,), float(step.threshold) / step.scaling.factor)
    )
    with torch.no_grad():
        assert float((network.encode(x) > 0).sum(dim=1).float().mean()) == pytest.approx(4, rel=0.15)
        assert fvu(x[:512], network(x[:512])) == pytest.approx(float(found["fvu"]), rel=0.2)


def test_exported_transcoders_predict_the_raw_target(x: Tensor, y: Tensor) -> None:
    square = torch.cat([y, y[:, :2]], dim=1)
    for architecture, target, kind in (("topk", square, TopKSAE), ("batchtopk", y, JumpReLUTranscoder)):
        step = build(x, target, architecture)
        for _ in range(60):
            step.update(x[:512], target[:512], 1.0)
        found = step.update(x, target, 0.0)
        network = step.export()
        assert isinstance(network, kind)
        with torch.no_grad():
            assert fvu(target, network(x)) == pytest.approx(float(found["fvu"]), rel=0.25)
            assert found["fvu"] < 0.2
    with pytest.raises(SaeError, match="Train it as batchtopk"):
        build(x, y).export()
