//! The signals that the server heeds.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::auth::Auth;
use crate::causes::with_causes;
use crate::http::fleet::RouterKeys;
use crate::prompt::Prompts;
use crate::service_manager::ServiceManager;
use crate::tls::server::ServerTls;

/// The signals that ask the server to stop: SIGTERM and SIGINT.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// SIGHUP, which asks the program to read some of its files again.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

/// What a server reads again.
#[derive(Debug)]
pub(crate) struct Reloads {
    pub(crate) prompts: Prompts,
    pub(crate) auth: Auth,
    pub(crate) router_keys: Option<RouterKeys>,
    pub(crate) tls: Option<ServerTls>,
    /// Is told when it begins and when it is done.
    pub(crate) service: ServiceManager,
}

impl StopSignals {
    /// Handles both signals from now on; they no longer end the process.
    ///
    /// # Errors
    /// When the operating system does not let a signal be handled.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reads the file of keys again, if there is one.
async fn reload_keys(auth: Auth) {
    match tokio::task::spawn_blocking(move || auth.reload()).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(keys))) => {
            tracing::info!(target: "audit", keys, outcome = "ok", "keys reloaded");
        }
        Ok(Err(error)) => {
            let error = with_causes(&error);
            tracing::warn!(target: "audit", error, outcome = "refused", "keys stay as they were");
        }
        Err(panic) => tracing::error!(%panic, "keys not reloaded"),
    }
}

impl Hangups {
    /// Waits for the next signal; false when there will be none.
    async fn next(&mut self) -> bool {
        self.0.recv().await.is_some()
    }

    /// Handles SIGHUP from now on; it no longer ends the process.
    ///
    /// # Errors
    /// When the operating system does not let a signal be handled.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Reads the certificate, all keys and the system prompts again at every SIGHUP.
    pub(crate) async fn reload(mut self, reloads: Reloads) {
        while self.next().await {
            reloads.service.reloading();
            reloads.run().await;
            reloads.service.reloaded();
        }
    }

    /// Reads a router's certificate and keys again at every SIGHUP.
    pub(crate) async fn reload_router(
        mut self,
        tls: Option<ServerTls>,
        auth: Auth,
        service: ServiceManager,
    ) {
        while self.next().await {
            service.reloading();
            if let Some(tls) = &tls {
                tls.reload_and_log().await;
            }
            reload_keys(auth.clone()).await;
            if tls.is_none() && !auth.asks() {
                tracing::info!("SIGHUP: there are no certificate and no keys, nothing to reload");
            }
            service.reloaded();
        }
    }
}

impl Reloads {
    async fn run(&self) {
        if let Some(tls) = &self.tls {
            tls.reload_and_log().await;
        }
        reload_keys(self.auth.clone()).await;
        if let Some(keys) = self.router_keys.clone() {
            match tokio::task::spawn_blocking(move || keys.reload()).await {
                Ok(Ok(keys)) => tracing::info!(keys, "keys of routers reloaded"),
                Ok(Err(error)) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "keys of routers stay as they were");
                }
                Err(panic) => tracing::error!(%panic, "keys of routers not reloaded"),
            }
        }
        let Some(enhancer) = self.prompts.enhancer().cloned() else {
            tracing::info!("SIGHUP: there is no prompt enhancer, nothing to reload for it");
            return;
        };
        match tokio::task::spawn_blocking(move || enhancer.reload()).await {
            Ok(Ok(origins)) => tracing::info!(?origins, "system prompts reloaded"),
            Ok(Err(error)) => tracing::warn!(%error, "system prompts stay as they were"),
            Err(panic) => tracing::error!(%panic, "system prompts not reloaded"),
        }
    }
}
