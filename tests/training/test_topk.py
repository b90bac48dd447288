"""TopK training, held to dense definitions: Adam, kernels, AuxK and the step, and what is exported."""

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUTranscoder, TopKSAE
from torch import Tensor
from torch.nn import functional as F

from iclens.core import SaeError, Site
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.topk import (
    Active,
    Adam,
    Encoder,
    SparseStep,
    auxiliary,
    by_latent,
    choose_batch_topk,
    choose_topk,
    clip,
    decode,
    dots,
    gather,
    reconstruct,
    top_latents,
    total,
)


def two_parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(n, 3, generator=generator, dtype=dtype) for name, n in (("a", 5), ("b", 2))}


def made_gradients(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Half of the rows of `a` get no gradient after the third step."""
    generator = torch.Generator().manual_seed(100 + step)
    found = {
        name: torch.randn(p.shape, generator=generator, dtype=dtype) for name, p in two_parameters().items()
    }
    if step > 2:
        found["a"][2:] = 0
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_is_that_of_torch(dtype: torch.dtype) -> None:
    ours, theirs = two_parameters(dtype), [p.requires_grad_() for p in two_parameters(dtype).values()]
    own = Adam(ours, torch.float32)
    reference = torch.optim.Adam(theirs, betas=(0.9, 0.99), foreach=False, fused=False)
    for step in range(20):
        lr = 0.1 / (1 + step)
        reference.param_groups[0]["lr"] = lr
        for p, g in zip(theirs, made_gradients(step, dtype).values(), strict=True):
            p.grad = g
        reference.step()
        own.step(made_gradients(step, dtype), lr)
        for p, q in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(
                p, q.detach(), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-7
            )


def test_narrow_moments_stay_close_and_still_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclens.training.topk._BLOCK", 4)
    wide, narrow = two_parameters(), two_parameters()
    exact, rounded = Adam(wide, torch.float32), Adam(narrow, torch.bfloat16)
    for step in range(30):
        exact.step(made_gradients(step), 0.01)
        rounded.step(made_gradients(step), 0.01)
    assert rounded.moments["exp_avg.a"].dtype == torch.bfloat16
    for name, start in two_parameters().items():
        torch.testing.assert_close(narrow[name] - start, wide[name] - start, rtol=0.1, atol=0.01)
    before = rounded.moments["exp_avg_sq.a"].clone()
    for _ in range(60):
        rounded.step({name: torch.zeros_like(p) for name, p in narrow.items()}, 0.0)
    assert (rounded.moments["exp_avg_sq.a"] < 0.6 * before).all()


def test_clip_shortens_all_by_one_factor() -> None:
    found = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    clip(found, 10.0)
    assert found["a"].item() == 3 and found["b"].item() == 4
    clip(found, 1.0)
    torch.testing.assert_close(torch.cat([found["a"], found["b"][0]]), torch.tensor([0.6, 0.8]))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(active: Active, d_sae: int) -> Tensor:
    """Activations as [row d_sae]."""
    a = torch.zeros(len(active.start), d_sae, dtype=active.value.dtype)
    return a.index_put((active.row, active.latent), active.value, accumulate=True)


def batch_topk(z: Tensor, k: int) -> Tensor:
    """relu(z) at the k·row largest of all, 0 elsewhere, [row latent]."""
    a = z.relu().flatten()
    top = a.topk(k * len(z))
    return torch.zeros_like(a).scatter(0, top.indices, top.values).view_as(z)


@pytest.mark.parametrize("n", [7, 64, 96, 1000, 2048])
def test_top_latents_are_the_largest(n: int) -> None:
    z = normal(33, n)
    values, columns = top_latents(z, 5)
    torch.testing.assert_close(values.sort(descending=True).values, z.topk(5).values)
    torch.testing.assert_close(z.gather(1, columns), values)


def test_top_latents_holds_when_the_largest_share_a_group() -> None:
    z = torch.zeros(1, 256)
    z[0, 3::32] = torch.arange(1.0, 9.0)
    assert top_latents(z, 8)[1].sort().values.tolist() == [list(range(3, 256, 32))]


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_topk_takes_each_rows_largest_whatever_the_chunk(chunk: int | None) -> None:
    u, matrix, bias = normal(20, 6), normal(64, 6, seed=1), normal(64, seed=2)
    active = choose_topk(Encoder(matrix, bias, chunk), u, 4)
    z = u @ matrix.T + bias
    top = z.topk(4)
    want = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(dense(active, 64), want)
    assert active.row.tolist() == [row for row in range(20) for _ in range(4)]


@pytest.mark.parametrize("least", [0.0, 1e-9, 0.5, 1e6])
@pytest.mark.parametrize("chunk", [None, 7])
def test_batch_topk_takes_the_batchs_largest_whatever_is_guessed(least: float, chunk: int | None) -> None:
    u, matrix, bias = normal(20, 6), normal(64, 6, seed=1), normal(64, seed=2)
    u[3] *= 20  # one row with far more than its share
    active = choose_batch_topk(Encoder(matrix, bias, chunk), u, 4, least)
    torch.testing.assert_close(dense(active, 64), batch_topk(u @ matrix.T + bias, 4))
    assert int((active.row == 3).sum()) > 12
    assert (active.row.diff() >= 0).all()
    assert active.start.tolist() == [int((active.row < row).sum()) for row in range(20)]


def test_batch_topk_keeps_what_is_positive_when_too_little_is() -> None:
    u, matrix = normal(10, 4), normal(15, 4, seed=1)
    bias = torch.full((15,), -3.0, dtype=torch.float64)
    active = choose_batch_topk(Encoder(matrix, bias), u, 8, 0.0)
    torch.testing.assert_close(dense(active, 15), (u @ matrix.T + bias).relu())
    nothing = choose_batch_topk(Encoder(matrix, bias - 1e3), u, 8, 0.0)
    assert not len(nothing.value)
    assert not decode(nothing, normal(15, 3)).any()


@pytest.mark.parametrize("choose", ["topk", "batchtopk"])
def test_a_narrow_product_chooses_and_full_precision_computes(choose: str) -> None:
    u, matrix = normal(50, 16, dtype=torch.float32), normal(64, 16, seed=1, dtype=torch.float32)
    bias = normal(64, seed=2, dtype=torch.float32)
    encoder = Encoder(matrix, bias, 16, torch.bfloat16)
    active = choose_topk(encoder, u, 4) if choose == "topk" else choose_batch_topk(encoder, u, 4, 0.0)
    z = u @ matrix.T + bias
    torch.testing.assert_close(active.value, z[active.row, active.latent].relu())
    want = torch.zeros_like(z).scatter(1, z.topk(4).indices, 1) if choose == "topk" else batch_topk(z, 4) > 0
    assert float(want.bool()[active.row, active.latent].float().mean()) > 0.95


def ragged() -> Active:
    """Entries of four rows, the second without any, latent 2 in two of them."""
    row = torch.tensor([0, 0, 2, 3, 3, 3])
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    return Active(value, row, torch.tensor([2, 0, 1, 4, 2, 0]), torch.tensor([0, 2, 2, 3]))


def test_sums_over_entries_are_the_dense_products() -> None:
    active, weights, x = ragged(), normal(5, 3), normal(4, 3, seed=1)
    a = dense(active, 5)
    torch.testing.assert_close(decode(active, weights), a @ weights)
    torch.testing.assert_close(
        dots(x, weights, active.latent, active.start), (x @ weights.T)[active.row, active.latent]
    )
    order = by_latent(active, 5)
    torch.testing.assert_close(gather(order, active.value, x), a.T @ x)
    torch.testing.assert_close(total(order, active.value), a.sum(dim=0))
    assert order.bounds.tolist() == [0, 2, 3, 5, 5, 6]


def dead_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    weights = {"encoder": normal(12, 5), "b_enc": normal(12) - 2, "decoder": normal(12, 4)}
    return normal(30, 5), normal(30, 4), weights


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("aux_k", [3, 12, 50])
@pytest.mark.parametrize("chunk", [None, 7])
def test_auxk_is_that_of_dense_autograd(
    dtype: torch.dtype, near: float, aux_k: int, chunk: int | None
) -> None:
    u, error, weights = dead_inputs(dtype)
    loss, gradients = auxiliary(u, error, weights, aux_k, chunk)
    dense = {name: w.clone().requires_grad_() for name, w in weights.items()}
    z = u @ dense["encoder"].T + dense["b_enc"]
    top = z.topk(min(aux_k, 12), dim=1)
    a = torch.zeros_like(z).scatter(1, top.indices, top.values)
    want = (a @ dense["decoder"] - error).square().sum() / error.square().sum()
    want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=near, atol=near)
    for name, w in dense.items():
        torch.testing.assert_close(gradients[name], w.grad, rtol=near, atol=near)


def test_narrow_products_stay_close() -> None:
    u, error, weights = dead_inputs(torch.float32)
    loss, gradients = auxiliary(u, error, weights, 12, 7)
    rough, roughly = auxiliary(u, error, weights, 12, 7, torch.bfloat16)
    torch.testing.assert_close(rough, loss, rtol=0.02, atol=0)
    for name, gradient in gradients.items():
        assert roughly[name].dtype == torch.float32
        assert float((roughly[name] - gradient).norm() / gradient.norm()) < 0.03


def test_latents_below_zero_get_a_gradient_on_both_sides() -> None:
    u, error, weights = dead_inputs(torch.float64)
    weights["b_enc"] -= 1e3
    _, gradients = auxiliary(u, error, weights, 12, None)
    assert (gradients["encoder"].abs().amax(dim=1) > 0).all()
    assert (gradients["decoder"].abs().amax(dim=1) > 0).all()


def test_nothing_left_to_explain_gives_no_infinity() -> None:
    u, error, weights = dead_inputs(torch.float32)
    loss, _ = auxiliary(u, torch.zeros_like(error), weights, 3, None)
    assert loss.isfinite()


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
