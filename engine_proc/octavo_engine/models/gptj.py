"""GPT-J (Wang and Komatsuzaki 2021): rotary positions that turn neighbouring pairs of the first rotary_dim dimensions
of a head, one norm for attention and feed-forward side by side, no bias in attention, one on the head."""

from __future__ import annotations

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import ParallelBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import Decoder, read_sizes

__all__ = ["GPTJ"]


class GPTJ(Decoder):
    """GPTJForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("tie_word_embeddings", [False])
        self.config = sizes = read_sizes("GPTJForCausalLM", config, loader)
        positions = ConfigReader({"max_position_embeddings": sizes.max_position})
        rope = Rope(positions, config.integer("rotary_dim", default=64), max_model_len)
        hidden = sizes.hidden_size
        width = config.integer("n_inner", default=4 * hidden)
        eps = config.number("layer_norm_epsilon", default=1e-5)
        act = config.activation("activation_function", default="gelu_new")
        cos_sin = self.rotation(rope, loader)
        body = loader.at("transformer.")
        body.ignore(r".*\.attn\.(bias|masked_bias|embed_positions)")  # buffers

        def layer(at: Loader) -> ParallelBlock:
            attn, mlp = at.at("attn."), at.at("mlp.")
            return ParallelBlock(
                at.layer_norm("ln_1", hidden, eps),
                Attention(
                    at.ops,
                    attn.linear(("q_proj", "k_proj", "v_proj"), (hidden,) * 3, hidden, Parallel.COLUMN, bias=False),
                    attn.linear("out_proj", hidden, hidden, Parallel.ROW, bias=False),
                    num_heads=sizes.num_heads,
                    scale=sizes.head_dim**-0.5,
                    cos_sin=cos_sin,
                    interleaved=True,
                ),
                None,
                MLP(
                    mlp.linear("fc_in", width, hidden, Parallel.COLUMN, bias=True, act=act),
                    mlp.linear("fc_out", hidden, width, Parallel.ROW, bias=True),
                ),
            )

        self.embed, self.head = body.embedding_and_head(
            "wte", sizes.vocab_size, hidden, head="lm_head", tied=False, bias=True
        )
        self.layers = [layer(body.at(f"h.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.layer_norm("ln_f", hidden, eps)
