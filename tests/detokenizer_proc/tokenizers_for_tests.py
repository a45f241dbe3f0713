"""Tokenizers of the kinds that decode differently, small enough to build on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "hello world, the quick brown fox",
    "héllo wörld",
    "日本語のテキスト",
    "👨‍👩‍👧 emoji 🎉",
    "e\u0301 a\u0308",
]


def byte_level() -> Tokenizer:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<added é>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece BPE with byte fallback, as in Llama 2, Mistral and Gemma."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    pieces = ["▁", "▁He", "llo", "▁wor", "ld", "a", "b", "▁a", "é", "日", "本", "▁日", "▁▁", "."]
    for piece in pieces:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """WordPiece, as in BERT."""
    vocabulary = {"[UNK]": 0, "hello": 1, "##lo": 2, "world": 3, ".": 4, "don": 5, "'": 6, "t": 7}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with Metaspace, as in T5."""
    pieces = [
        ("<unk>", 0.0),
        ("▁hel", -1.0),
        ("lo", -1.0),
        ("▁", -2.0),
        ("wor", -1.0),
        ("日", -3.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


ALL = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "word_piece": word_piece,
    "metaspace": metaspace,
}
