"""Small tokenizers with chat templates in the manner of well-known families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "you are a helpful assistant",
    "system user assistant",
    "<|im_start|> <start_of_turn> </s>",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
# As in Qwen 3: the assistant's thoughts are cut away, and user messages are looked into.
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% elif m.content.startswith('<tool_response>') %}{{ m.content }}\n"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} </s>"
    "{% else %}<s>[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
AS_JSON = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content | tojson(ensure_ascii=true) }}"
    " {{ m.content | upper | tojson }}<|im_end|>{% endfor %}"
)


def byte_level(special: Sequence[str], added: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    return tokenizer


def sentencepiece(special: Sequence[str], normalizer: Any) -> Tokenizer:
    """BPE with byte fallback, the special tokens in the vocabulary, and merges that spell them."""
    vocabulary = {name: number for number, name in enumerate(special)}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"<>/[]|_acdefmnorstu"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = []
    for name in special:
        for size in range(2, len(name) + 1):
            if all(character in vocabulary for character in name[:size]):
                vocabulary.setdefault(name[:size], len(vocabulary))
                merges.append((name[: size - 1], name[size - 1]))
    model = models.BPE(
        vocabulary,
        list(dict.fromkeys(merges)),
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def qwen() -> Any:
    """Byte-level, with markup that is not special."""
    tokenizer = byte_level(
        ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool_response>", "<b>"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=QWEN)


def llama_3() -> Any:
    """Byte-level with a beginning, and a template that trims."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special), bos_token=special[0], chat_template=LLAMA_3
    )


def gemma() -> Any:
    """SentencePiece whose special tokens merges could spell; line breaks are added tokens."""
    special = ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = sentencepiece(special, normalizers.Replace(" ", "▁"))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(
        [AddedToken("\n\n", normalized=False), AddedToken("<b>", normalized=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>", chat_template=GEMMA
    )


def llama_2() -> Any:
    """SentencePiece that puts a space before every piece of text."""
    special = ["<unk>", "<s>", "</s>"]
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = sentencepiece(special, normalizer)
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", chat_template=LLAMA_2
    )


def metaspace() -> Any:
    """Unigram with special tokens among its pieces, a space before the very first word only."""
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    pieces = [(name, 0.0) for name in special] + [("▁hel", -1.0), ("lo", -1.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in "<>|abcdefghijklmnopqrstuvwxyz_\n"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", chat_template=CHATML
    )


def normalized() -> Any:
    """WordPiece that looks for special tokens in lower-case text without private characters."""
    special = ["[unk]", "<|im_start|>", "<|im_end|>"]
    words = [*special, "system", "user", "hello", "<", ">", "|", "_", "im", "start", "end"]
    model = models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[unk]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(name, normalized=True) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[unk]", chat_template=CHATML
    )


def stripping() -> Any:
    """Special tokens that take the white space around them."""
    tokenizer = byte_level([])
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", lstrip=True), AddedToken("<|im_end|>", rstrip=True)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML)


def as_json() -> Any:
    """A template that writes contents as JSON, in ASCII, and in capitals."""
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>", '<|"|>', "<|IM_START|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=AS_JSON)


ALL = {
    "qwen": qwen,
    "llama_3": llama_3,
    "gemma": gemma,
    "llama_2": llama_2,
    "metaspace": metaspace,
    "normalized": normalized,
    "stripping": stripping,
    "as_json": as_json,
}
EXACT = ("qwen", "llama_3", "gemma")
"""Those whose ids decode to exactly the text that was encoded."""
