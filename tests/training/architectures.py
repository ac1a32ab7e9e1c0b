"""Every architecture that transformers registers for sequence classification, tiny: what trains, and what is refused.

`python tests/training/architectures.py [NAME ...]` tries them and prints a line each; with `--write` it puts the table
into docs/models.md. A model trains where two steps of version 6 run and move every weight that a plain loop moves, and
where the gradient of one step at version -1 is a plain loop's to 1e-6. What is refused must be refused by a ValueError
of this package.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import logging
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.training.models.perturbation import positions_of

BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
VOCABULARY, PAD = 60, 1
LENGTHS = [5, 3, 8, 7]

# Small values for the attributes by which configurations name their sizes.
SIZES = {
    name: size
    for size, names in {
        VOCABULARY: "vocab_size pronunciation_vocab_size shape_vocab_size",
        64: "max_position_embeddings n_positions max_seq_len max_2d_position_embeddings",
        48: "intermediate_size hidden_dim dff d_ff n_inner d_inner ffn_hidden_size ffn_dim encoder_ffn_dim "
        "decoder_ffn_dim feed_forward_size",
        32: "hidden_size d_model dim n_embd emb_dim pooler_hidden_size prediction_head_size attention_hidden_size "
        "embed_dim d_latents image_size out_hidden_size",
        16: "embedding_size q_lora_rank kv_lora_rank intra_bottleneck_size moe_intermediate_size adapter_rank "
        "shared_expert_intermediate_size shared_intermediate_size gated_norm_rank mamba_d_state mamba_headdim "
        "linear_key_head_dim linear_value_head_dim index_head_dim entity_emb_size entity_vocab_size patch_size",
        8: "head_dim d_kv d_head kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim attention_head_dim "
        "attention_head_size local_attention sliding_window attention_window chunk_size pronunciation_embed_dim "
        "shape_embed_dim",
        4: "num_attention_heads n_heads n_head num_heads encoder_attention_heads decoder_attention_heads num_experts "
        "num_local_experts n_routed_experts block_size mamba_dt_rank index_topk num_latents",
        2: "num_hidden_layers n_layers n_layer num_layers num_decoder_layers encoder_layers decoder_layers "
        "num_experts_per_tok num_experts_per_token moe_topk num_key_value_heads num_kv_heads num_query_groups "
        "n_mamba_heads index_n_heads linear_num_key_heads linear_num_value_heads type_vocab_size num_random_blocks "
        "num_self_attends_per_block num_self_attention_heads num_cross_attention_heads depth",
        1: "n_shared_experts n_group topk_group",
    }.items()
    for name in names.split()
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
# What shrinking does not find.
LATENT = {"num_key_value_heads": 4}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "minicpm3"), LATENT),
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4, "mask_token_id": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "lilt": {"hidden_size": 48, "num_attention_heads": 2, "channel_shrink_ratio": 4},
    "ministral": {"head_dim": 8},
    "mistral4": {
        **LATENT,
        "rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64},
    },
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5": {"text_config": HYBRID},
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "reformer": {
        **{"axial_pos_shape": [2, 4], "axial_pos_embds_dim": [16, 16], "num_buckets": 2, "is_decoder": False},
        **{"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
    },
    "squeezebert": {"embedding_size": 32},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **{"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
        **{"attention_hidden_size": 64, "attention_head_dim": 16},
    },
    "zamba2": {
        **{"layers_block_type": ["linear_attention", "hybrid"], "mamba_headdim": 32},
        **{"attention_hidden_size": 64, "attention_head_dim": 16},
    },
}


class Row(NamedTuple):
    """What came of an architecture: the feature it trained with, or why it was refused or could not be tried."""

    name: str
    model: str
    feature: str = ""
    longest: int | None = None
    refused: str = ""
    untried: str = ""


def tiny_model(name: str, *, dropout: float = 0.0, seed: int = 0, **changes: Any) -> Any:
    """A classifier of three labels, of a registered architecture in a few thousand parameters."""
    sizes = _shrunk(CONFIG_MAPPING[name]().to_dict(), dropout) | {"num_labels": 3}
    for own, value in (OWN.get(name, {}) | changes).items():
        sizes[own] = sizes[own] | value if isinstance(value, dict) and own.endswith("_config") else value
    torch.manual_seed(seed)
    return getattr(transformers, NAMES[name])(CONFIG_MAPPING[name](**sizes))


def _shrunk(config: dict[str, Any], dropout: float) -> dict[str, Any]:
    sizes: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    for name, value in config.items():
        if name in SIZES and value is not None:
            sizes[name] = SIZES[name]
        elif isinstance(value, float) and "drop" in name:
            sizes[name] = dropout
        elif isinstance(value, dict) and (name.endswith("_config") or name in ("encoder", "decoder")):
            sizes[name] = _shrunk(value, dropout)
    return sizes


def batch_of(*, left: bool = False) -> dict[str, torch.Tensor]:
    """Four sentences of several lengths, padded on the right or on the left."""
    generator, longest = torch.Generator().manual_seed(3), max(LENGTHS)
    ids, mask = torch.full((len(LENGTHS), longest), PAD), torch.zeros(len(LENGTHS), longest, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(longest - length, None) if left else slice(length)
        ids[row, place] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        ids[row, place][-1] = 2  # the end of the text, without which some heads read nothing
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1, 0])}


def trainer_of(model: Any, batch: dict[str, torch.Tensor], folder: str, **settings: Any) -> InfoBertTrainer:
    """Steps on one batch, over and over; at rate 1, a step takes its gradient from the parameters."""
    size = len(batch["labels"])
    defaults = {
        **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "optim": "sgd"},
        **{"learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "max_steps": 1},
        **{"per_device_train_batch_size": size, "critic_hidden_dim": 8},
    }
    trainer = InfoBertTrainer(
        model,
        InfoBertArguments(folder, **{**defaults, **settings}),
        train_dataset=[{"row": row} for row in range(size)],
        data_collator=lambda rows: {name: value.clone() for name, value in batch.items()},
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def plain_gradient(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By a loop without a trainer: forward, backward. A parameter without a gradient counts as zero."""
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def stepped_gradient(model: Any, batch: dict[str, torch.Tensor], folder: str, **settings: Any) -> tuple[Any, str]:
    """What one step of the trainer takes from the parameters, and the sentence feature of the run."""
    features: list[str] = []

    class Noting(transformers.TrainerCallback):
        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            features.append(trainer._runner.model.feature)  # type: ignore[union-attr]

    trainer = trainer_of(model, batch, folder, **settings)
    trainer.add_callback(Noting())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}, features[-1]


def tried(name: str, folder: str) -> Row:
    """Train an architecture, or have it refused; `untried` where it cannot be built or run here without us.

    Raises:
        AssertionError: where it trains and something is not as it should be.
    """
    row = Row(name, NAMES[name])
    try:
        model = tiny_model(name)
    except ImportError as error:
        return row._replace(untried=str(error).strip().split(" but it")[0])
    # XLNet reads the last place of a row, and is padded on the left.
    batch = batch_of(left=getattr(model.config, "summary_type", None) == "last")
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    expected = plain_gradient(copy.deepcopy(model), batch)
    try:
        standard = {"version": -1, "adv_steps": 1, "adv_init_mag": 0.0}
        actual, feature = stepped_gradient(copy.deepcopy(model), batch, folder, **standard)
        moved, same = stepped_gradient(copy.deepcopy(model), batch, folder, version=6, adv_steps=2, alpha=0.1)
    except ValueError as error:
        return row._replace(refused=str(error))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(
            actual[parameter], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}"
        )
    assert feature == same
    assert all(bool(value.isfinite().all()) for value in moved.values())
    assert moved["mi_estimator.F_func.0.weight"].any()
    assert any(bool(value.any()) for value in expected.values())
    longest = positions_of(model)
    check_longest(model, longest)
    return row._replace(feature=feature, longest=longest)


@torch.no_grad()
def check_longest(model: Any, longest: int | None) -> None:
    """A text of that length runs, and one of a token more does not; without a length, one beyond any table does."""
    model.eval()
    model(input_ids=torch.full((1, longest or 100), 5), attention_mask=torch.ones(1, longest or 100, dtype=torch.long))
    if longest is None or model.config.model_type == "tapas":  # which gives later tokens its last position
        return
    try:
        model(input_ids=torch.full((1, longest + 1), 5), attention_mask=torch.ones(1, longest + 1, dtype=torch.long))
    except (IndexError, RuntimeError, ValueError):
        return
    raise AssertionError(f"{type(model).__name__} reads {longest + 1} tokens, and positions_of said {longest}")


def written(rows: list[Row]) -> str:
    """The table of the page."""
    version = importlib.metadata.version("transformers")
    trained = [row for row in rows if row.feature]
    refused = [row for row in rows if row.refused]
    lines = [
        f"transformers {version} registers {len(rows)} architectures for sequence classification. "
        f"{len(trained)} train, {len(refused)} are refused, and {len(rows) - len(trained) - len(refused)} could not be "
        "tried.",
        "",
        "| Architecture | Class | Sentence feature |",
        "|---|---|---|",
        *(f"| `{row.name}` | {row.model} | {row.feature} |" for row in trained),
        "",
        "| Not trained | Class | Why |",
        "|---|---|---|",
        *(f"| `{row.name}` | {row.model} | {row.refused or row.untried} |" for row in rows if not row.feature),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print a line an architecture; `--write` puts the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names:
            rows.append(tried(name, folder))
            print(*rows[-1], sep=" | ", flush=True)
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        table = f"{BEGIN}\n{written(rows)}\n{END}"
        PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
