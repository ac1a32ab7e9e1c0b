"""A training script that had slow mutual-information losses, and the two lines that made them fast.

    python examples/swap_in.py            # trains both ways from one start; prints the difference and the ratio

`InfoNCE` and `CLUBv2` below are the losses as people write them down, every pair concatenated: N x N x 2d. Everything
else, the script around them, knows nothing of this package.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from infobert_fast import reference


class InfoNCE(nn.Module):
    """The lower bound, literally."""

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int = 300) -> None:
        super().__init__()
        self.F_func = nn.Sequential(
            nn.Linear(x_dim + y_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1), nn.Softplus()
        )

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        w1, b1, w2, b2 = self.F_func.parameters()
        return reference.info_nce(x_samples, y_samples, w1, b1, w2, b2)


class CLUBv2(nn.Module):
    """The upper bound, literally."""

    def __init__(self, x_dim: int, y_dim: int) -> None:
        super().__init__()

    def mi_est(self, x_samples: Tensor | None, y_samples: Tensor) -> Tensor:
        return reference.club(y_samples)


LITERAL = InfoNCE, CLUBv2

# ---- the two lines: without them the script below runs as it did

from infobert_fast import CLUBv2, InfoNCE  # noqa: E402

FAST = InfoNCE, CLUBv2

# ---- the script


def train(losses: tuple[type, type], steps: int, pairs: int, dim: int) -> tuple[list[float], float]:
    """Losses by step, and seconds a step without the first."""
    lower_bound, upper_bound = losses
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
    classifier = nn.Linear(dim, 2)
    critic, club = lower_bound(dim, dim), upper_bound(dim, dim)
    parameters = [*encoder.parameters(), *classifier.parameters(), *critic.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    history, started = [], 0.0
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        tokens = torch.randn(pairs, dim, generator=generator)
        labels = (tokens[:, 0] > 0).long()
        features = encoder(tokens)
        loss = nn.functional.cross_entropy(classifier(features), labels)
        loss = loss + 5e-3 * club.mi_est(None, features) - 5e-3 * critic(tokens, features)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    return history, (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--dim", type=int, default=256)
    args = parser.parse_args()
    slow, slow_seconds = train(LITERAL, args.steps, args.pairs, args.dim)
    fast, fast_seconds = train(FAST, args.steps, args.pairs, args.dim)
    difference = max(abs(one - other) for one, other in zip(slow, fast, strict=True))
    print(f"{args.pairs} pairs: literal {1e3 * slow_seconds:.1f} ms a step, infobert-fast {1e3 * fast_seconds:.1f} ms")
    print(f"losses differ by at most {difference:.1e} over {len(slow)} steps")
    print(f"ratio {slow_seconds / fast_seconds:.1f}")


if __name__ == "__main__":
    main()
