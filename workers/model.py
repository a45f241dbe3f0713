"""Loading a model through mlx-lm and finding out what it costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
from mlx.nn.layers.quantized import quantize as quantize_modules
from mlx_lm.models.cache import make_prompt_cache
from msgspec import structs

from mlxfleet.common.config import WorkerOptions, WorkerProcess
from mlxfleet.common.errors import ModelError
from mlxfleet.common.messages import ModelInfo
from mlxfleet.common.model_config import context_length, eos_ids
from mlxfleet.workers import cpu_linear
from mlxfleet.workers.blas_threads import leave_a_core_to_others
from mlxfleet.workers.kv_cost import measure
from mlxfleet.workers.kv_storage import KVStorage, create_storage, slab_layout
from mlxfleet.workers.load_report import LoadReport, unreported
from mlxfleet.workers.memory import (
    block_bytes,
    measure_activations,
    memory_limit_bytes,
    plan_memory,
    set_memory_limits,
)
from mlxfleet.workers.pass_times import measure_passes
from mlxfleet.workers.weights import bytes_of, read_weights

log = logging.getLogger(__name__)

PROBE_TOKENS = [1, 2, 3]
QUANTIZE_GROUP = 64
# What mlx-lm and MLX raise for a bad folder, or for a model that this machine cannot run.
CAUSES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_model(
    told: WorkerProcess, report: LoadReport | None = None
) -> tuple[KVStorage, ModelInfo]:
    """Load a model folder, plan its memory, set MLX's limits, time a few passes, and `report` how
    far that is. ModelError if any of it fails."""
    folder, options = told.model_dir, told.options
    report = report or unreported()
    model, config = read_model(folder, options, report)
    weights_bytes = bytes_of(model)
    report.begin("testing")
    cache = make_prompt_cache(model)
    try:
        logits = model(mx.array([PROBE_TOKENS]), cache=cache)
        mx.eval(logits, [layer.state for layer in cache])
    except CAUSES as error:
        raise ModelError(f"{folder.name} does not run on this machine: {error}") from error
    cpu_linear.adapt(model)
    layout = slab_layout(model, cache, options.kv_bits)
    fixed, per_token, windowed = measure(cache)
    if layout is not None:
        shapes, format = layout
        per_token = sum(shape.token_bytes(format) for shape in shapes)
    context = context_length(config, options.max_context)
    limit_bytes = memory_limit_bytes(options, told.machine_share)
    report.step()
    # Chunks never are longer than the context.
    activation_bytes = measure_activations(
        create_storage(model, layout, budget_bytes=0, cold_blocks=0),
        config,
        max_chunk_tokens=min(told.max_chunk_tokens, context),
        max_running=told.max_rows,
        vocab_size=logits.shape[-1],
        context_length=context,
    )
    block = block_bytes(per_token) if layout is not None else 0
    plan = plan_memory(
        options,
        limit_bytes=limit_bytes,
        weights_bytes=weights_bytes,
        activation_bytes=activation_bytes,
        block_bytes=block,
    )
    info = ModelInfo(
        vocab_size=logits.shape[-1],
        context_length=context,
        eos_ids=sorted(eos_ids(folder, config)),
        kv_budget_bytes=plan.kv_bytes,
        fixed_bytes=fixed,
        bytes_per_token=per_token,
        windowed=windowed,
        weights_bytes=weights_bytes,
        in_slabs=layout is not None,
        cold_blocks=plan.prefix_cache_bytes // block if block else 0,
    )
    table = plan.table(per_token)
    if plan.kv_bytes < info.kv_bytes(1):
        raise ModelError(
            f"{folder.name} leaves no room for a KV cache (a sequence takes at least"
            f" {info.kv_bytes(1) / 1e9:.3f} GB):\n  "
            + "\n  ".join(table)
            + "\nraise --memory-gb, or"
            " lower --max-context, --max-chunk-tokens, --max-running or --prefix-cache-gb"
        )
    set_memory_limits(limit_bytes, activation_bytes)
    log.info("model loaded on %s, context %d tokens", mx.default_device(), context)
    for line in table:
        log.info("%s", line)
    storage = create_storage(
        model,
        layout,
        budget_bytes=plan.kv_bytes,
        cold_blocks=info.cold_blocks,
        expected_rows=told.max_rows,
    )
    if options.blas_threads is None:
        leave_a_core_to_others(storage)
    report.begin("measuring")
    passes = measure_passes(
        storage,
        max_rows=told.max_rows,
        max_tokens=min(told.max_chunk_tokens, context - 1),
        on_pass=report.step,
    )
    return storage, structs.replace(info, passes=passes)


def read_model(
    folder: Path, options: WorkerOptions, report: LoadReport
) -> tuple[Any, dict[str, Any]]:
    """The model, quantized if asked, and its configuration. ModelError if that fails. Weights are
    quantized as they are read, so they are never in memory all in full."""
    try:
        model, config = mlx_lm.utils.load_model(
            folder, lazy=True, trust_remote_code=options.trust_remote_code
        )
        if options.quantize is not None:
            quantize(model, config, bits=int(options.quantize.removeprefix("q")))
        report.knows_model(
            context_length=context_length(config, options.max_context),
            total_bytes=bytes_of(model),
        )
        report.begin("reading" if options.quantize is None else "quantizing")
        read_weights(model, report)
    except CAUSES as error:
        raise ModelError(f"mlx-lm cannot load {folder}: {error}") from error
    mx.clear_cache()
    return model, config


def quantize(model: Any, config: dict[str, Any], *, bits: int) -> None:
    """Have every layer quantized that can be, when it is read; ModelError if the weights are
    quantized already."""
    if "quantization" in config:
        raise ModelError("--quantize: the weights are quantized already; start without it")

    def fits(path: str, module: Any) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % QUANTIZE_GROUP == 0

    quantize_modules(model, group_size=QUANTIZE_GROUP, bits=bits, class_predicate=fits)
