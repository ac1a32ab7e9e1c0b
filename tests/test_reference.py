"""The specification against the formulas, spelled out once more in plain Python numbers and loops."""

from __future__ import annotations

import math

import pytest
import torch

from infobert_fast import reference

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=F64), torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance
    )


# --- InfoNCE ------------------------------------------------------------------------------------------------------


def logit(x: list, y: list, critic: tuple) -> float:
    w1, b1, w2, b2 = (tensor.tolist() for tensor in critic)
    total = b2[0]
    for h in range(len(b1)):
        unit = b1[h] + sum(w * v for w, v in zip(w1[h], x + y, strict=True))
        total += w2[0][h] * max(unit, 0.0)
    return total


def softplus(u: float) -> float:
    return max(u, 0.0) + math.log1p(math.exp(-abs(u)))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def naive_bound(xs: list, ys: list, critic: tuple) -> float:
    n = len(xs)
    positive = sum(softplus(logit(xs[i], ys[i], critic)) for i in range(n)) / n
    negative = 0.0
    for i in range(n):
        negative += (log_sum_exp([softplus(logit(xs[j], ys[i], critic)) for j in range(n)]) - math.log(n)) / n
    return positive - negative


def naive_info_nce(x, y, critic, local_index=None, pair_index=None, chunk_size=None) -> float:
    x, y = x.tolist(), y.tolist()
    xs = x if local_index is None else [x[p] for p in local_index]
    ys = y if pair_index is None else [y[p] for p in pair_index]
    c = chunk_size or len(xs)
    chunks = [naive_bound(xs[s : s + c], ys[s : s + c], critic) for s in range(0, len(xs), c)]
    return sum(chunks) / len(chunks)


def problem(pairs: int, rows: int, x_dim: int = 4, y_dim: int = 3, hidden: int = 6, scale: float = 1.0):
    critic = (
        normal(hidden, x_dim + y_dim, seed=3),
        normal(hidden, seed=4),
        normal(1, hidden, seed=5),
        normal(1, seed=6),
    )
    return scale * normal(pairs, x_dim, seed=1), scale * normal(rows, y_dim, seed=2), critic


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 4, 11, 50])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (12.0, 0.0), (1.0, 22.0)])
def test_info_nce_is_the_formula(chunk_size, scale, bias):
    """11 pairs: chunks of 3 and 4 leave a ragged one; scores of order 1, of +-100, and above 20, where softplus is
    nearly linear.
    """
    x, y, critic = problem(11, 11, scale=scale)
    critic[3].add_(bias)
    got = reference.info_nce(x, y, *critic, chunk_size=chunk_size)
    close(got, naive_info_nce(x, y, critic, chunk_size=chunk_size))


def test_ragged_last_chunk_counts_as_much_as_the_others():
    x, y, critic = problem(7, 7)
    whole, last = (
        naive_bound(x[:4].tolist(), y[:4].tolist(), critic),
        naive_bound(x[4:].tolist(), y[4:].tolist(), critic),
    )
    assert abs(whole - last) > 1e-3  # otherwise any weights would do
    close(reference.info_nce(x, y, *critic, chunk_size=4), (whole + last) / 2)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_info_nce_indices_say_which_rows_a_pair_uses(chunk_size):
    x, y, critic = problem(6, 3)
    local_index, pair_index = [5, 0, 0, 2, 4, 3, 1, 1], [2, 0, 2, 1, 1, 1, 0, 2]
    got = reference.info_nce(
        x, y, *critic, local_index=torch.tensor(local_index), pair_index=torch.tensor(pair_index), chunk_size=chunk_size
    )
    close(got, naive_info_nce(x, y, critic, local_index, pair_index, chunk_size))


def test_sum_runs_over_local_samples_for_each_global_one():
    """Transposing the table of scores changes the bound; a critic that ignores y tells the two apart."""
    x, y, (w1, b1, w2, b2) = problem(5, 5)
    w1[:, 4:] = 0
    critic = (w1, b1, w2, b2)
    scores = [softplus(logit(row, [0.0] * 3, critic)) for row in x.tolist()]
    close(reference.info_nce(x, y, *critic), sum(scores) / 5 - log_sum_exp(scores) + math.log(5))


def test_one_pair_gives_exactly_zero():
    x, y, critic = problem(1, 1)
    assert reference.info_nce(x, y, *critic) == 0
    x, y, critic = problem(4, 4)
    assert reference.info_nce(x, y, *critic, chunk_size=1) == 0


def test_bound_never_exceeds_log_n_and_comes_near_it():
    """A critic that can only answer 'same feature on both sides' with large weights separates n one-hot pairs."""
    n = 6
    eye = torch.eye(n, dtype=F64)
    w1 = 100 * torch.cat([eye, eye], dim=1)  # unit h counts how many sides show feature h
    critic = (w1, torch.full((n,), -150.0, dtype=F64), torch.ones(1, n, dtype=F64), torch.zeros(1, dtype=F64))
    bound = reference.info_nce(eye, eye, *critic).item()
    assert bound <= math.log(n)
    assert bound > math.log(n) - 1e-12
    for seed in range(20):
        x, y = normal(n, 4, seed=seed), normal(n, 3, seed=100 + seed)
        assert reference.info_nce(x, y, *problem(1, 1)[2]) <= math.log(n)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_pairwise_mlp_logsumexp_is_the_formula(chunk_size):
    a, b, w2, b2 = normal(5, 4, seed=1), normal(3, 4, seed=2), normal(4, seed=3), normal(1, seed=4)
    local_index, pair_index = [4, 0, 0, 3, 1, 2, 4], [0, 1, 2, 2, 0, 1, 1]

    def u(j: int, i: int) -> float:
        return b2.item() + sum(w2[h].item() * max(a[j, h].item() + b[i, h].item(), 0.0) for h in range(4))

    if chunk_size is None:
        expected = [log_sum_exp([u(j, i) for j in local_index]) for i in range(3)]
    else:
        expected = []
        for p, i in enumerate(pair_index):
            start = p // chunk_size * chunk_size
            expected.append(log_sum_exp([u(j, i) for j in local_index[start : start + chunk_size]]))
    got = reference.pairwise_mlp_logsumexp(
        a, b, w2, b2, local_index=torch.tensor(local_index), pair_index=torch.tensor(pair_index), chunk_size=chunk_size
    )
    close(got, expected)


# --- CLUB ---------------------------------------------------------------------------------------------------------


def half_square_distance(p: list, q: list) -> float:
    return sum((s - t) ** 2 for s, t in zip(p, q, strict=True)) / 2


def test_club_is_the_mean_over_all_ordered_pairs():
    y = normal(7, 3)
    rows = y.tolist()
    close(reference.club(y), sum(half_square_distance(p, q) for p in rows for q in rows) / 49)
    kept = [rows[m] for m in (0, 2, 3, 6)]
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1])
    close(reference.club(y, mask), sum(half_square_distance(p, q) for p in kept for q in kept) / 16)
    close(reference.club(y.reshape(7, 1, 3), mask.reshape(7, 1)), reference.club(y, mask))


def test_club_sampled_pairs_each_counted_row_with_its_index():
    y, index = normal(5, 3), [4, 0, 0, 3, 1]
    rows = y.tolist()
    terms = [half_square_distance(rows[m], rows[index[m]]) for m in range(5)]
    close(reference.club_sampled(y, torch.tensor(index)), sum(terms) / 5)
    mask = torch.tensor([True, False, True, True, False])
    close(reference.club_sampled(y, torch.tensor(index), mask), (terms[0] + terms[2] + terms[3]) / 3)


def test_club_is_the_exact_expectation_of_its_sampled_form():
    """Over every one of the 3^3 partner assignments."""
    y = normal(3, 2)
    values = [reference.club_sampled(y, torch.tensor([i, j, k])) for i in range(3) for j in range(3) for k in range(3)]
    close(torch.stack(values).mean(), reference.club(y))


def test_masked_rows_may_hold_nan_without_reaching_the_gradient():
    y = normal(4, 3)
    y[2] = torch.nan
    y.requires_grad_()
    mask = torch.tensor([1, 1, 0, 1])
    for value in (reference.club(y, mask), reference.club_sampled(y, torch.tensor([1, 3, 0, 0]), mask)):
        (grad,) = torch.autograd.grad(value, y)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert (grad[2] == 0).all()


def test_learned_club_is_the_formula():
    n, d = 5, 3
    mu, logvar, y = normal(n, d, seed=1), normal(n, d, seed=2), normal(n, d, seed=3)
    m, v, t = mu.tolist(), logvar.exp().tolist(), y.tolist()
    index = [2, 2, 0, 4, 1]
    likelihood = sampled = exact = 0.0
    for i in range(n):
        for k in range(d):
            own = (m[i][k] - t[i][k]) ** 2
            likelihood += (-own / v[i][k] - math.log(v[i][k])) / n
            sampled += (-own + (m[i][k] - t[index[i]][k]) ** 2) / (2 * v[i][k]) / n
            exact += (-own + sum((m[i][k] - t[j][k]) ** 2 for j in range(n)) / n) / (2 * v[i][k]) / n
    close(reference.gaussian_log_likelihood(mu, logvar, y), likelihood)
    close(reference.gaussian_club_sampled(mu, logvar, y, torch.tensor(index)), sampled)
    close(reference.gaussian_club(mu, logvar, y), exact)


# --- anchors ------------------------------------------------------------------------------------------------------


def naive_anchors(norms: list[float], cl: float, ch: float) -> list[int]:
    """Positions by ascending (norm, position), ranks ``ceil(n cl) <= r < ceil(n ch)``."""
    n = len(norms)
    ranks = [sum((norms[s], s) < (norms[t], t) for s in range(n)) for t in range(n)]
    return [ranks.index(r) for r in range(n) if math.ceil(n * cl) <= r < math.ceil(n * ch)]


@pytest.mark.parametrize(("cl", "ch"), [(0.5, 0.9), (0.75, 0.95), (0.0, 1.0), (0.3, 0.3)])
def test_anchors_of_every_length_are_the_formula(cl, ch):
    grad = torch.zeros(130, 130, 2, dtype=F64)
    grad[..., 0] = normal(130, 130)
    mask = torch.tril(torch.ones(130, 130, dtype=torch.int64))  # sentence i has i + 1 tokens
    indices = reference.anchor_indices(grad, mask, cl, ch).tolist()
    expected = []
    for i in range(130):
        expected += [i * 130 + t for t in naive_anchors(grad[i, : i + 1, 0].abs().tolist(), cl, ch)]
    assert indices == expected
    marked = reference.select_anchors(grad, mask, cl, ch)
    assert marked.flatten().nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize(("n", "count"), [(128, 52), (40, 16), (20, 8)])
def test_published_window_gives_the_published_counts(n, count):
    mask = torch.ones(1, n, dtype=torch.int64)
    assert reference.select_anchors(normal(1, n, 3), mask, 0.5, 0.9).sum() == count


def test_anchor_ties_are_ranked_by_position():
    mask = torch.ones(1, 10, dtype=torch.int64)
    assert reference.anchor_indices(torch.zeros(1, 10, 3), mask, 0.5, 0.9).tolist() == [5, 6, 7, 8]
    grad = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0, 1.0]).reshape(1, 6, 1)  # ranked 1 3 5 0 2 4
    assert reference.anchor_indices(grad, mask[:, :6], 0.0, 1.0).tolist() == [1, 3, 5, 0, 2, 4]


def test_nan_gradient_ranks_as_infinity():
    grad = torch.tensor([torch.nan, 1.0, torch.inf, torch.nan, 0.5]).reshape(1, 5, 1)
    mask = torch.ones(1, 5, dtype=torch.int64)
    assert reference.anchor_indices(grad, mask, 0.0, 1.0).tolist() == [4, 1, 0, 2, 3]


def test_left_padding_is_never_an_anchor():
    grad = torch.arange(16.0).reshape(2, 8, 1)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [1] * 8])
    assert reference.anchor_indices(grad, mask, 0.5, 1.0).tolist() == [6, 7, 12, 13, 14, 15]


# --- FreeLB -------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0]])  # right, left and much padding


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_freelb_init_is_a_scaled_uniform_draw(norm_type):
    delta = reference.freelb_init(
        torch.zeros(3, 4, 5, dtype=F64), MASK, 0.3, norm_type, generator=torch.Generator().manual_seed(9)
    )
    draw = torch.rand(3, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(9)).tolist()
    for i, length in enumerate((4, 2, 1)):
        magnitude = 0.3 / math.sqrt(length * 5) if norm_type == "l2" else 0.3
        for t in range(4):
            expected = [(2 * u - 1) * magnitude * MASK[i, t].item() for u in draw[i][t]]
            close(delta[i, t], expected)


def naive_step(delta: list, grad: list, mask: list, lr: float, max_norm: float, norm_type: str) -> list:
    """One sentence, ``delta[t][k]``."""
    tokens = [t for t, keep in enumerate(mask) if keep]
    entries = [g for t in tokens for g in grad[t]]
    size = math.sqrt(sum(g * g for g in entries)) if norm_type == "l2" else max(abs(g) for g in entries)
    moved = [[0.0] * len(row) for row in delta]
    for t in tokens:
        moved[t] = [d + lr * g / max(size, 1e-8) for d, g in zip(delta[t], grad[t], strict=True)]
    if max_norm > 0 and norm_type == "linf":
        moved = [[min(max(v, -max_norm), max_norm) for v in row] for row in moved]
    elif max_norm > 0:
        norm = math.sqrt(sum(v * v for row in moved for v in row))
        if norm > max_norm:
            moved = [[v * max_norm / norm for v in row] for row in moved]
    return moved


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_its_authors_known_answers(counter, key, expected):
    """Random123's vectors for philox4x32-10."""
    assert [f"{word:08x}" for word in reference.philox4x32(counter, key)] == expected.split()


def test_a_seeded_start_is_a_function_of_seed_sentence_token_and_channel():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    delta = reference.freelb_init(
        torch.zeros(2, 3, 5, dtype=F64), mask, 0.3, "linf", seed=-3, sentence_ids=torch.tensor([2**32 + 1, 8])
    )
    # the words of the seed -3, the counter's of the first sentence's second token
    words = reference.philox4x32([1, 1, 1, 1], [2**32 - 3, 2**32 - 1])
    close(delta[0, 2, 4], 0.3 * ((2 * (words[0] >> 9) + 1) / 2**23 - 1))
    close(delta[1, 0, 1], 0.3 * reference.counter_uniform(-3, 8, 0, 1))
    assert not delta[mask == 0].any()


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.05, 100.0])
@pytest.mark.parametrize("grad_scale", [1.0, 1e-12, 0.0])
def test_freelb_step_is_the_formula(norm_type, max_norm, grad_scale):
    """Gradients of 1e-12 fall below the clamp of the norm at 1e-8."""
    delta, grad = 0.1 * normal(3, 4, 5, seed=1) * MASK.unsqueeze(-1), grad_scale * normal(3, 4, 5, seed=2)
    got = reference.freelb_step(delta, grad, MASK, 0.2, max_norm, norm_type)
    expected = [
        naive_step(*args, 0.2, max_norm, norm_type)
        for args in zip(delta.tolist(), grad.tolist(), MASK.tolist(), strict=True)
    ]
    close(got, expected)
    assert (got[MASK == 0] == 0).all()
    if max_norm == 0.05:
        norms = got.flatten(1).norm(dim=1) if norm_type == "l2" else got.flatten(1).abs().amax(1)
        assert (norms <= 0.05 + 1e-15).all()


def test_freelb_step_ignores_what_padding_holds():
    delta, grad = normal(3, 4, 5, seed=1), normal(3, 4, 5, seed=2)
    clean = reference.freelb_step(delta, grad, MASK, 0.2, 0.5)
    delta[MASK == 0], grad[MASK == 0] = 7.0, torch.nan
    assert torch.equal(reference.freelb_step(delta, grad, MASK, 0.2, 0.5), clean)
