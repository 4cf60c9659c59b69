//! The metrics of TLS: handshakes, and when the certificate ends.

use std::fmt;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};

use super::server::{HandshakeCounts, ServerTls};
use crate::metrics::{Gauges, number};

/// Reads what the listeners count when it is scraped; without TLS all is zero.
#[derive(Debug)]
pub(crate) struct TlsGauges(pub(crate) Option<ServerTls>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Collector for TlsGauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tls = self.0.as_ref();
        let HandshakeCounts {
            ok,
            failed,
            timeout,
        } = tls.map(ServerTls::handshakes).unwrap_or_default();
        let counts = [("ok", ok), ("failed", failed), ("timeout", timeout)];
        let counts = counts.map(|(outcome, count)| (OutcomeLabel { outcome }, number(count)));
        let mut gauges = Gauges(encoder);
        gauges.counters(
            "tls_handshakes",
            "TLS handshakes of new connections, by how they ended",
            counts,
        )?;
        let expires = tls.and_then(ServerTls::expires);
        let expires = expires.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let no_labels: [(&str, &str); 0] = [];
        gauges.each(
            "tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate ends that new connections get; without TLS there is none",
            expires.map(|expires| (no_labels, expires.as_secs_f64())),
        )
    }
}
