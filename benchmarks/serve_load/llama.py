"""A Llama with drawn weights in the two forms that the servers read: Hugging Face's and GGUF.

The first needs transformers, the second `gguf`, which the environment of llama.cpp has.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

#: 71.8M parameters.
SHAPE: dict[str, Any] = {
    "vocab_size": 16_384, "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10,
    "num_attention_heads": 10, "num_key_value_heads": 10, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

#: What Llama 3 cuts text by; llama.cpp knows it as "llama-bpe".
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_llama(folder: Path, seed: int = 0) -> None:
    """Weights in fp32 and a tokenizer, as `save_pretrained` lays them out."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    words = _tokenizer()
    (folder / "tokenizer.json").write_text(words.to_str(), encoding="utf-8")
    begin, end = words.token_to_id(BEGIN), words.token_to_id(END)
    # Wide enough that the likeliest token is seldom a near tie.
    config = LlamaConfig(
        **SHAPE, bos_token_id=begin, eos_token_id=end, initializer_range=0.05, dtype=torch.float32
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    special = {"bos_token": BEGIN, "eos_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, **kind}))


def _tokenizer() -> Any:
    """BPE over bytes, trained on the sources of Python's standard library."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(BEGIN, special=True), AddedToken(END, special=True)],
    )  # fmt: skip
    made.train_from_iterator((path.read_text("utf-8") for path in sources), trainer)
    if made.get_vocab_size() != SHAPE["vocab_size"]:
        raise RuntimeError(f"the tokenizer has {made.get_vocab_size()} pieces")
    return made


def write_gguf(folder: Path, out: Path) -> None:
    """The same model as llama.cpp reads it, in fp32."""
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    _write_shape(writer, config)
    _write_pieces(writer, json.loads((folder / "tokenizer.json").read_text("utf-8")), config)
    with safe_open(folder / "model.safetensors", "np") as held:
        for name in held.keys():  # noqa: SIM118 - it is no mapping
            writer.add_tensor(_gguf_name(name), _gguf_weight(name, held.get_tensor(name), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0)  # all in fp32


def _write_pieces(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    special = {one["content"] for one in tokenizer["added_tokens"]}
    pieces = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in special else 1 for piece in pieces])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip
_INNER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, number, inner = name.removesuffix(".weight").split(".", 3)
    return f"blk.{number}.{_INNER[inner]}.weight"


def _gguf_weight(name: str, weight: Any, config: dict[str, Any]) -> Any:
    """Rows of queries and keys in pairs: llama.cpp turns neighbours, not halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
    rows, columns = weight.shape
    halves = weight.reshape(config[key], 2, rows // config[key] // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
