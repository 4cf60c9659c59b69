//! The keys `server.tracing.*`.

use url::Url;

use crate::settings::{Key, KeySpec, Reader, SettingError};

/// Where traces go, and which sessions are traced.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the collector takes spans; `None` where the variables of OpenTelemetry say so.
    pub endpoint: Option<Url>,
    /// The part of all sessions that is traced, 0 to 1.
    pub sample_ratio: f64,
    /// Whether a client decides whether its session is traced.
    pub trusts_clients: bool,
}

/// The keys of traces.
pub static KEYS: &[&KeySpec] = &[
    &ENDPOINT.spec,
    &SAMPLE_RATIO.spec,
    &TRUST_CLIENT_SAMPLING.spec,
];

static ENDPOINT: Key<Option<String>> = Key::text("server.tracing.endpoint")
    .short("otlp-endpoint")
    .help("Where an OpenTelemetry collector takes traces over OTLP, such as http://localhost:4318 [default: OTEL_EXPORTER_OTLP_ENDPOINT, or no traces]");

static SAMPLE_RATIO: Key<f64> = Key::f64("server.tracing.sample_ratio", 0.0, 1.0)
    .help("The part of all sessions that is traced")
    .default(1.0);

static TRUST_CLIENT_SAMPLING: Key<bool> = Key::switch("server.tracing.trust_client_sampling")
    .help("Whether the `traceparent` of a client says whether its session is traced")
    .default(false);

/// The path at which collectors take spans.
const PATH: &str = "v1/traces";
/// The variables that name a collector for every program.
const VARIABLES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Builds the configuration. Without a collector there is none.
pub(crate) fn read(reader: &mut Reader<'_>) -> Option<Config> {
    let given = reader
        .get(&ENDPOINT)
        .filter(|endpoint| !endpoint.is_empty());
    let endpoint = match given.as_deref().map(endpoint) {
        Some(Some(endpoint)) => Some(endpoint),
        Some(None) => {
            reader.report(SettingError::Value {
                key: ENDPOINT.spec.path.to_owned(),
                expected: "an address such as http://localhost:4318".to_owned(),
                given: format!("{:?}", given.unwrap_or_default()),
                origin: reader.origin(&ENDPOINT.spec),
            });
            return None;
        }
        None => None,
    };
    let is_named = |name: &str| {
        let value = reader.surroundings().variable(name);
        value.is_some_and(|value| !value.is_empty())
    };
    if endpoint.is_none() && !VARIABLES.iter().any(|name| is_named(name)) {
        return None;
    }
    Some(Config {
        endpoint,
        sample_ratio: reader.get(&SAMPLE_RATIO),
        trusts_clients: reader.get(&TRUST_CLIENT_SAMPLING),
    })
}

/// Returns where the collector at this address takes spans.
fn endpoint(given: &str) -> Option<Url> {
    let mut url: Url = given.parse().ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return None;
    }
    if !url.path().ends_with(PATH) {
        let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_collector_leads_to_its_traces() {
        let check = |given: &str, expected: Option<&str>| {
            let url = endpoint(given).map(String::from);
            assert_eq!(url.as_deref(), expected, "{given}");
        };
        let expected = Some("http://localhost:4318/v1/traces");
        check("http://localhost:4318", expected);
        check("http://localhost:4318/", expected);
        check("http://localhost:4318/v1/traces", expected);
        check(
            "https://c.example/otlp",
            Some("https://c.example/otlp/v1/traces"),
        );
        check("localhost:4318", None);
        check("ftp://localhost", None);
        check("collector", None);
    }
}
