"""Which fields of which messages a tap shows, and which it hides because they are, or come from,
prompts and answers.

Keys are messages' types; a dot leads into a structure within a field, whether that stands alone, in
a list or in a sparse column. What is in neither table is hidden, and a test does not let a field be
in neither.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, frozenset[str]]


def fields(names: str, **inner: str) -> frozenset[str]:
    """Names of fields, and of fields of the structures in them."""
    return frozenset(names.split()).union(
        f"{field}.{name}" for field, names in inner.items() for name in names.split()
    )


SAMPLING = (
    "seed max_tokens temperature top_p top_k min_p presence_penalty frequency_penalty"
    " repetition_penalty logprobs ignore_eos"
)
MODEL = (
    "vocab_size context_length eos_ids kv_budget_bytes fixed_bytes bytes_per_token windowed"
    " weights_bytes in_slabs cold_blocks passes"
)
NODE = (
    "name incarnation version worker running queued max_running max_queue kv_used_bytes steps"
    " busy_s idle_s preemptions generated_tokens prefilled_tokens cached_tokens cold_blocks_used"
    " worker_restarts dropped_frames worker_dropped_frames worker_memory_bytes rss_bytes received"
    " queued_prefill_tokens running_prefill_tokens prefill_tokens_per_s decode_step_s decode_row_s"
    " sequence_s cold_age_s kv_sequence slowdown metrics_address"
)
LOADING = "stage done loaded_bytes total_bytes remaining_s context_length"
INFO = "instance model tokenizer_hash host chip memory_bytes"
TELEMETRY = (
    "source cpu_temperature_c gpu_temperature_c cpu_power_w gpu_power_w total_power_w"
    " cpu_frequency_hz gpu_frequency_hz cpu_utilization gpu_utilization memory_pressure"
    " memory_total_bytes memory_used_bytes wired_bytes swap_used_bytes thermal_state failures"
)
FINISH = "reason cached_tokens"

SHOWN: Fields = {
    "welcome": fields("session detokenizers model"),
    "refused": fields("reason"),
    "hello": fields(
        "name incarnation version dropped_frames rss_bytes token_address model",
        steps="counts total_s",
    ),
    "tokenize_text": fields("rid max_tokens traceparent"),
    "tokenize_chat": fields("rid max_tokens traceparent"),
    "take_apart": fields("rid field"),
    "tokenize_content": fields("rid field max_tokens vocab_size traceparent"),
    "tokenized": fields("rid"),
    "taken_apart": fields("rid"),
    "tokenize_failed": fields("rid param code"),
    "generate": fields(
        "rid attempt detokenizer traceparent siblings",
        sampling=SAMPLING,
        party="client request weight priority",
    ),
    "resend": fields("rid attempt detokenizer start"),
    "release": fields("rid attempt"),
    "send_kv_snapshot": fields(""),
    "machine_sample": fields("", machine=TELEMETRY, nodes=TELEMETRY),
    "node_status": fields(NODE, model=MODEL, info=INFO, telemetry=TELEMETRY, loading=LOADING),
    "kv_events": fields("sequence cleared"),
    "kv_snapshot": fields("sequence first last"),
    "rejected": fields("rid attempt code message"),
    "tokens": fields("rids attempts starts", finish=FINISH),
    "open_stream": fields("rid attempt sent_chars max_tokens vocab_size traceparent"),
    "close_stream": fields("rid attempt"),
    "text": fields("rids attempts starts offsets", finish=FINISH),
    "stream_lost": fields("rid attempt"),
    "leaving": fields(""),
    "stream_broken": fields("rid attempt why sick"),
    "reset": fields("epoch"),
    "ping": fields(""),
    "admit": fields("rid n_output cached_tokens cached_blocks", sampling=SAMPLING),
    "prefill": fields("rids tokens rests"),
    "store": fields("rid start blocks"),
    "drop": fields("rid"),
    "admitted": fields("epoch rid"),
    "worker_loading": fields("incarnation version", progress=LOADING),
    "worker_status": fields(
        "incarnation version epoch memory_bytes dropped_frames rss_bytes mlx_cache_bytes"
        " mlx_peak_bytes",
        model=MODEL,
    ),
    "step": fields("epoch rids finish failed prefilled decoded_rows pass_s idle_s"),
}

TOKEN_TEXT = "token bytes logprob"

# Hashes of blocks are hidden too: who guesses a prompt could see whether it was there.
HIDDEN: Fields = {
    "tokenize_text": fields("texts"),
    "tokenize_chat": fields("messages"),
    "take_apart": fields("body"),
    "tokenize_content": fields("content"),
    "tokenized": fields("token_ids block_hashes"),
    "taken_apart": fields("parameters content"),
    "tokenize_failed": fields("message"),
    "generate": fields("prompt_ids output_ids", sampling="logit_bias"),
    "kv_events": fields("removed stored"),
    "kv_snapshot": fields("stored"),
    "tokens": fields("ids logprobs"),
    "open_stream": fields("prompt_tail output_ids stop"),
    "text": fields("ids texts logprobs"),
    "admit": fields("token_ids", sampling="logit_bias"),
    "step": fields("ids logprobs"),
}


class Hidden:
    """Stands for a value that is not shown: how long it is, or each of its entries."""

    def __init__(self, size: int | list[int]) -> None:
        self.size = size


def redact(kind: str, message: dict[Any, Any]) -> dict[Any, Any]:
    """A message with everything hidden that is not known to be harmless."""
    shown = SHOWN.get(kind, frozenset())
    return {
        key: value if key == "type" else visible(value, str(key), shown)
        for key, value in message.items()
    }


def visible(value: Any, path: str, shown: frozenset[str]) -> Any:
    """The part of a field's value that is shown."""
    if path in shown or value is None:
        return value
    if not any(name.startswith(f"{path}.") for name in shown):
        return Hidden(size_of(value))
    if isinstance(value, list):
        return [visible(item, path, shown) for item in value]
    if isinstance(value, dict):
        # Sparse columns have numbers for keys, structures have names.
        return {
            key: visible(item, path if isinstance(key, int) else f"{path}.{key}", shown)
            for key, item in value.items()
        }
    return Hidden(size_of(value))


def size_of(value: Any) -> int | list[int]:
    """Characters, entries, or of a list of lists and texts the size of each."""
    if isinstance(value, list) and value and all(isinstance(i, list | str) for i in value):
        return [len(item) for item in value]
    return len(value) if isinstance(value, list | str | bytes | dict) else 1
