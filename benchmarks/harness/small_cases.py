"""Every kernel once, forward and backward, on sizes that fill no block: what gpu.sh runs under compute-sanitizer."""

from __future__ import annotations

import torch

from infobert_fast import InfoNCE, functional


def main() -> None:
    torch.manual_seed(0)
    batch, length, width = 3, 37, 40
    grad, h0 = torch.randn(2, batch, length, width, device="cuda")
    h0.requires_grad_()
    z = torch.randn(batch, width, device="cuda", requires_grad=True)
    lengths = [37, 20, 5]
    mask = (torch.arange(length) < torch.tensor(lengths).unsqueeze(1)).long().cuda()
    critic = InfoNCE(width, width, 33).cuda()
    anchors = functional.anchor_indices(grad, mask, lengths=lengths)
    rows = functional.take_rows(h0.flatten(0, 1), anchors, distinct=True)
    bounds = [functional.club(h0, mask), functional.club_sampled(h0, functional.sample_rows(mask), mask)]
    for chunk_size in (3, None):
        bounds.append(critic(rows, z, pair_index=anchors // length, chunk_size=chunk_size))
    bounds.append(
        functional.info_nce(
            rows.detach(), z, *critic.F_func.parameters(), pair_index=anchors // length, precision="fast"
        )
    )
    bounds.append(functional.separable_info_nce(rows, rows.detach().roll(1, 0), critic="cosine", symmetric=True))
    torch.stack(bounds).sum().backward()
    delta = functional.freelb_init(h0.detach(), mask, 0.08, seed=1)
    for norm in ("l2", "linf"):
        delta = functional.freelb_step(delta, grad, mask, 0.04, 0.05, norm)
    torch.cuda.synchronize()
    assert all(bool(tensor.isfinite().all()) for tensor in (h0.grad, z.grad, delta)), "a result is not finite"


if __name__ == "__main__":
    main()
