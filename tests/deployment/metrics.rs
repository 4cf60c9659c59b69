//! The names of the metrics that alerts and board may use.

use std::collections::BTreeSet;

/// Metrics as docs/metrics.md names them, without the suffixes of histograms.
const COUNTERS_AND_GAUGES: &str = "
    fastvideo_build_info
    fastvideo_sessions fastvideo_sessions_opened_total fastvideo_sessions_closed_total fastvideo_sessions_rejected_total
    fastvideo_queue_depth fastvideo_capacity_sessions fastvideo_free_sessions
    fastvideo_segments_total fastvideo_segment_attempts_started_total fastvideo_segment_attempts_total
    fastvideo_video_seconds_total fastvideo_video_frames_total
    fastvideo_viewer_seconds_total fastvideo_viewer_stalls_total fastvideo_viewer_stall_seconds_total
    fastvideo_media_bytes_total fastvideo_media_messages_total
    fastvideo_unsent_bytes fastvideo_slow_clients
    fastvideo_worker_state fastvideo_worker_info fastvideo_worker_exits_total fastvideo_worker_busy_seconds_total
    fastvideo_worker_heartbeat_age_seconds fastvideo_worker_resident_bytes fastvideo_worker_gpu_memory_bytes
    fastvideo_handoffs_total
    fastvideo_store_operations_total fastvideo_store_sessions fastvideo_store_bytes fastvideo_store_late_saves_total
    fastvideo_prompt_requests_total fastvideo_prompt_cache_hits_total fastvideo_prompt_fallbacks_total
    fastvideo_prompts_screened_total fastvideo_safety_available
    fastvideo_auth_total fastvideo_tls_handshakes_total fastvideo_tls_certificate_expiry_timestamp_seconds
    fastvideo_config_reloads_total fastvideo_config_last_reload_successful
    fastvideo_config_last_reload_success_timestamp_seconds
    fastvideo_log_lines_total fastvideo_session_log_events_lost_total fastvideo_trace_spans_total
    fastvideo_router_servers fastvideo_router_sessions fastvideo_router_waiting_sessions fastvideo_router_wanted_gpus
    fastvideo_router_moves_total
    fastvideo_video_jobs_open fastvideo_video_jobs_total
    process_cpu_seconds_total process_open_fds process_max_fds process_virtual_memory_bytes
    process_resident_memory_bytes process_start_time_seconds process_threads
";

const HISTOGRAMS: &str = "
    fastvideo_session_duration_seconds fastvideo_session_queue_seconds
    fastvideo_segment_time_to_first_fragment_seconds fastvideo_segment_queue_seconds
    fastvideo_segment_generation_seconds fastvideo_segment_phase_seconds fastvideo_step_seconds
    fastvideo_segment_realtime_factor fastvideo_relay_seconds
    fastvideo_worker_start_seconds fastvideo_recovery_seconds
    fastvideo_store_operation_seconds fastvideo_prompt_request_seconds
    fastvideo_runtime_lag_seconds fastvideo_router_move_seconds
    http_server_request_duration_seconds
";

/// Every series that a server, a router or NVIDIA's DCGM exporter offers, by name.
fn series() -> BTreeSet<String> {
    let mut series: BTreeSet<String> = (COUNTERS_AND_GAUGES.split_whitespace())
        .map(str::to_owned)
        .collect();
    for name in HISTOGRAMS.split_whitespace() {
        series.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
    }
    let dcgm = [
        "GPU_UTIL",
        "FB_USED",
        "POWER_USAGE",
        "XID_ERRORS",
        "ENC_UTIL",
    ];
    series.extend(dcgm.map(|field| format!("DCGM_FI_DEV_{field}")));
    series
}

/// Names in an expression of PromQL that look like metrics of ours, of the process, of HTTP or of DCGM.
fn named(expression: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (expression.split(|c| !is_part(c)))
        .filter(|word| {
            ["fastvideo_", "process_", "http_server_", "DCGM_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        .collect()
}

/// Fails where an expression names a metric that does not exist; returns those that it names.
pub(super) fn check(place: &str, expression: &str) -> BTreeSet<String> {
    let series = series();
    let named = named(expression);
    for name in &named {
        assert!(series.contains(*name), "{place}: no metric `{name}`");
    }
    named.into_iter().map(str::to_owned).collect()
}
