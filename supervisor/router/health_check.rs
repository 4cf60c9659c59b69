//! Probes of the servers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use url::Url;

use super::config::HealthCheck;
use super::encryption;
use super::registry::{Replica, ReplicaRegistry};

/// Asks a server whether it is well.
pub trait HttpProbe: Send + Sync + 'static {
    /// Gets an address. A status of 400 and above is a failure.
    ///
    /// # Errors
    /// Returns why there was no good answer.
    fn get(&self, url: Url) -> impl Future<Output = Result<(), String>> + Send;
}

/// The probe of a running router.
#[derive(Clone, Debug)]
pub struct HttpClient(reqwest::Client);

impl HttpClient {
    /// # Errors
    /// Returns an error when TLS cannot be set up.
    pub fn new(tls: Option<&ClientConfig>) -> io::Result<Self> {
        let client = encryption::http_client(tls).build();
        client.map(Self).map_err(io::Error::other)
    }
}

impl HttpProbe for HttpClient {
    async fn get(&self, url: Url) -> Result<(), String> {
        let answer = self.0.get(url).send().await;
        let answer = answer.map_err(|error| encryption::reason(&error.without_url()))?;
        match answer.status().as_u16() {
            status if status < 400 => Ok(()),
            status => Err(format!("status {status}")),
        }
    }
}

impl HealthCheck {
    /// Asks a server once. Returns how long the answer took.
    ///
    /// # Errors
    /// Returns why there was no good answer in time.
    pub async fn ask(&self, server: &Url, probe: &impl HttpProbe) -> Result<Duration, String> {
        let begun = Instant::now();
        match timeout(self.timeout, probe.get(below(server, &self.path))).await {
            Ok(answer) => answer.map(|()| begun.elapsed()),
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }
}

/// Probes all replicas at once, again and again, and those that are new at once, until it is dropped.
pub async fn run_health_check_loop(
    registry: ReplicaRegistry,
    check: HealthCheck,
    probe: impl HttpProbe,
) {
    let mut rounds = interval(check.interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut list = registry.list();
    loop {
        let is_round = tokio::select! {
            _ = rounds.tick() => true,
            Ok(()) = list.changed() => false,
        };
        let replicas = list.borrow_and_update().clone();
        let is_due = |replica: &&Arc<Replica>| is_round || replica.health().is_unprobed();
        let probes = replicas.iter().filter(is_due).map(async |replica| {
            let outcome = check.ask(&replica.endpoint.url, &probe).await;
            registry.record(replica, outcome);
        });
        join_all(probes).await;
        registry.all_probed();
    }
}

/// Returns an address below that of a server.
pub(super) fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let prefix = base.path().trim_end_matches('/');
    url.set_path(&format!("{prefix}{path}"));
    url.set_query(query);
    url
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::router::config::ReplicaEndpoint;
    use crate::router::health::{ReplicaStatus, Thresholds};

    #[test]
    fn a_path_lies_below_the_address_of_its_server() {
        for (base, path, expected) in [
            ("http://a:8000", "/health", "http://a:8000/health"),
            ("http://a:8000/", "/health", "http://a:8000/health"),
            ("https://a/video/", "/v1/x?y=1", "https://a/video/v1/x?y=1"),
        ] {
            let url = below(&base.parse().unwrap(), path);
            assert_eq!(url.as_str(), expected);
        }
    }

    /// Answers what the test says next for each server, and nothing after that.
    struct Script(Mutex<Vec<(&'static str, Option<bool>)>>);

    impl HttpProbe for Arc<Script> {
        async fn get(&self, url: Url) -> Result<(), String> {
            let answer = {
                let mut script = self.0.lock().unwrap();
                let host = url.host_str().unwrap_or_default().to_owned();
                let next = script.iter().position(|(name, _)| *name == host);
                next.map(|next| script.remove(next).1)
            };
            match answer {
                Some(Some(true)) => Ok(()),
                Some(Some(false)) => Err("status 500".to_owned()),
                Some(None) | None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_servers_are_probed_at_once_and_a_silent_one_is_given_up() {
        let endpoint = |name: &str| ReplicaEndpoint {
            url: format!("http://{name}").parse().unwrap(),
            name: Some(name.to_owned()),
            primary: false,
            weight: 1.0,
        };
        let thresholds = Thresholds {
            failure: 2,
            recovery: 1,
        };
        let registry =
            ReplicaRegistry::new(vec![endpoint("a"), endpoint("b")], thresholds, None, false);
        let check = HealthCheck {
            path: "/health".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            thresholds,
        };
        let script = vec![
            ("a", None),
            ("b", Some(true)),
            ("a", Some(false)),
            ("b", Some(true)),
            ("a", Some(true)),
        ];
        let probe = Arc::new(Script(Mutex::new(script)));
        let running = run_health_check_loop(registry.clone(), check, probe);
        let begun = Instant::now();
        let watching = async {
            let states = || [0, 1].map(|n| registry.all()[n].health().status());
            registry.first_probes().await;
            assert_eq!(begun.elapsed(), Duration::from_secs(2));
            assert_eq!(states(), [ReplicaStatus::Unknown, ReplicaStatus::Healthy]);
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert_eq!(states(), [ReplicaStatus::Unhealthy, ReplicaStatus::Healthy]);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(states(), [ReplicaStatus::Healthy, ReplicaStatus::Healthy]);
        };
        tokio::select! {
            () = running => unreachable!("it has no end"),
            () = watching => {}
        }
    }
}
