"""Every metric of the router's /metrics."""

from __future__ import annotations

from mlxfleet.common.metric_family import counter, gauge, histogram
from mlxfleet.common.tally import STAGE_SECONDS

BUILD_INFO = gauge(
    "mlxfleet_build_info", "1; which version runs here.", "role", "version", "python"
)
READY = gauge("mlxfleet_ready", "1 if requests can be answered, as /ready says.")

REQUESTS_RECEIVED = counter(
    "mlxfleet_requests_received_total",
    "Requests for generation that came in.",
    "endpoint",
)
REQUESTS_ANSWERED = counter(
    "mlxfleet_requests_answered_total",
    "Requests that are over, by outcome: ok, client_error (the request's own fault), cancelled (the"
    " client went away), backpressure (no room, no node, or out of time) or error. The model is"
    " empty if the request named none that is served.",
    "model",
    "endpoint",
    "outcome",
)
REQUEST_SECONDS = histogram(
    "mlxfleet_request_seconds",
    "From the arrival of a request to its last byte.",
    "model",
    "endpoint",
)
TTFT_SECONDS = histogram(
    "mlxfleet_time_to_first_token_seconds",
    "From the arrival of a request to the first token of each of its sequences at the router.",
    "model",
)
INTER_TOKEN_SECONDS = histogram(
    "mlxfleet_inter_token_seconds", "Between two tokens of a sequence at the router.", "model"
)
STAGE = histogram(
    "mlxfleet_stage_seconds",
    "What the stages of a request take: validate, tokenize, admission (the wait for a place on a"
    " node), route (one decision), send, detokenize (one step).",
    "model",
    "stage",
    buckets=STAGE_SECONDS,
)

PROMPT_TOKENS = counter("mlxfleet_prompt_tokens_total", "Prompt tokens of requests.", "model")
CACHED_PROMPT_TOKENS = counter(
    "mlxfleet_cached_prompt_tokens_total",
    "Prompt tokens of finished sequences that came out of a prefix cache.",
    "model",
)
OUTPUT_TOKENS = counter("mlxfleet_output_tokens_total", "Tokens received from nodes.", "model")

STREAM_PINGS = counter(
    "mlxfleet_stream_pings_total", "Comments sent in streams that were silent for long."
)
REQUESTS_WITHOUT_NODE = gauge(
    "mlxfleet_requests_without_node",
    "Requests that wait for a process that is not there or still loads, before they queue.",
)

SEQUENCES_IN_FLIGHT = gauge(
    "mlxfleet_sequences_in_flight", "Sequences in the router, waiting or on a node."
)
SEQUENCES_LIMIT = gauge("mlxfleet_sequences_limit", "Sequences that may be in the router at once.")
SEQUENCES_WAITING = gauge(
    "mlxfleet_sequences_waiting",
    "Sequences that wait in the router for a place on a node.",
    "priority",
)
CONNECTIONS = gauge(
    "mlxfleet_http_connections",
    "Client connections that are open: busy with a request, or idle.",
    "state",
)
CONNECTIONS_LIMIT = gauge(
    "mlxfleet_http_connections_limit", "Client connections that may be open at once."
)
CONNECTIONS_CLOSED = counter(
    "mlxfleet_http_connections_closed_total",
    "Client connections that the router has closed: head (no request came in time), idle, evicted"
    " (idle, to make room for another), refused (no room), stalled (the client did not read its"
    " answer), ahead (too much was sent before the answer to the request before it).",
    "reason",
)
BODY_BYTES = gauge(
    "mlxfleet_request_body_bytes", "Request bodies in memory, from their first byte to admission."
)
BODY_BYTES_LIMIT = gauge(
    "mlxfleet_request_body_limit_bytes", "Request bodies that may be in memory at once."
)
BODIES_REFUSED = counter(
    "mlxfleet_request_bodies_refused_total",
    "Request bodies that were not read to their end: memory (too many bytes of bodies were here),"
    " size (larger than --max-body-mb), slow, encoding (compressed).",
    "reason",
)
RECOVERIES = counter(
    "mlxfleet_recoveries_total",
    "Sequences resumed after a process behind them restarted or lost messages.",
)
FAILOVERS = counter(
    "mlxfleet_failovers_total",
    "Sequences that went on on another node, by the node that they left because it was lost or"
    " draining.",
    "node",
)
REFUSED_NODES = counter(
    "mlxfleet_refused_nodes_total",
    "Nodes that were not let in: key, version, model (or its tokenizer), name, full.",
    "reason",
)
REFUSED_WEB = counter(
    "mlxfleet_refused_web_requests_total",
    "Requests that were refused because a web page may have sent them, by the error's code:"
    " host_not_allowed, origin_not_allowed, admin_header_required, json_required.",
    "code",
)
MALFORMED_REQUESTS = counter(
    "mlxfleet_malformed_requests_total", "Requests that were refused because they are not HTTP."
)
NODE_FENCES = counter(
    "mlxfleet_node_fences_total",
    "Times that the node was fenced for breaking the protocol, by what it did: malformed, tokens,"
    " denial, refusal, silence, flood or error.",
    "node",
    "reason",
)

NODE_READY = gauge("mlxfleet_node_ready", "1 if the node gets requests.", "node", "model")
NODE_STATE = gauge(
    "mlxfleet_node_state",
    "1 for the state that the node is in: ready, busy, draining, loading, hung, dead or fenced.",
    "node",
    "state",
)
NODE_BREAKER = gauge(
    "mlxfleet_node_breaker", "1 for the state of the node's circuit breaker.", "node", "state"
)
NODE_SILENCE = gauge("mlxfleet_node_silence_seconds", "Since the last report of the node.", "node")
NODE_WEIGHT = gauge(
    "mlxfleet_node_weight",
    "How much of the work the node should get for its condition; 1 for the best of its model.",
    "node",
)
NODE_SLOWDOWN = gauge(
    "mlxfleet_node_slowdown_ratio",
    "How many times as long passes take as when the machine was cool, for the same work.",
    "node",
)
NODE_SEQUENCES = gauge(
    "mlxfleet_node_sequences", "Sequences that the router has on the node.", "node"
)
NODE_UNREPORTED = gauge(
    "mlxfleet_node_unreported_requests",
    "Requests sent to the node that its reports do not cover yet.",
    "node",
)

CACHE_INDEX_BLOCKS = gauge(
    "mlxfleet_cache_index_blocks", "Blocks of tokens that the node is known to have cached.", "node"
)
CACHE_INDEX_LIMIT = gauge(
    "mlxfleet_cache_index_limit_blocks", "Blocks that the index may have of all nodes together."
)
CACHE_INDEX_DROPPED = counter(
    "mlxfleet_cache_index_dropped_blocks_total", "Blocks forgotten because the index was full."
)
CACHE_EVENT_GAPS = counter(
    "mlxfleet_cache_event_gaps_total", "Messages about the node's cache that were missed.", "node"
)
CACHE_SNAPSHOTS = counter(
    "mlxfleet_cache_snapshots_total", "Times that the node told of its whole cache.", "node"
)

PROCESS_RESTARTS = counter(
    "mlxfleet_process_restarts_total",
    "Restarts that the router has seen; NODE is a scheduler, NODE/worker its worker.",
    "process",
)
DROPPED_FRAMES = counter(
    "mlxfleet_dropped_frames_total", "Malformed messages that were dropped.", "process"
)
PROCESS_SILENCE = gauge(
    "mlxfleet_process_silence_seconds", "Since the last heartbeat of the process.", "process"
)
PROCESS_MEMORY = gauge("mlxfleet_process_memory_bytes", "Resident memory.", "role", "process")
