//! Messages that others publish. They may be lost, so whoever listens looks from time to time, too.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt;
use redis::{Client, ErrorKind, Msg, RedisResult};
use tokio::time::{interval, sleep, timeout};

/// The pause before the next attempt to listen.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// The time between two questions whether the connection is alive.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Calls `told` with the text of each message on a channel, for ever, and with an empty text whenever messages may have
/// been missed. `limit` is the time for each answer of the Redis.
pub(crate) async fn hear(
    client: &Client,
    channel: &str,
    limit: Duration,
    mut told: impl FnMut(&str),
) {
    loop {
        let Err(error) = listen(client, channel, limit, &mut told).await;
        tracing::debug!(%error, "no messages of the Redis");
        sleep(RECONNECT_PAUSE).await;
    }
}

/// Listens until the connection fails.
async fn listen(
    client: &Client,
    channel: &str,
    limit: Duration,
    told: &mut impl FnMut(&str),
) -> RedisResult<Infallible> {
    let mut connection = within(limit, client.get_async_pubsub()).await?;
    within(limit, connection.subscribe(channel)).await?;
    told("");
    let (mut sink, mut messages) = connection.split();
    let mut pings = interval(PING_INTERVAL);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => told(&text(&message)),
                None => return Err((ErrorKind::Io, "the connection has ended").into()),
            },
            _ = pings.tick() => within(limit, sink.ping::<redis::Value>()).await.map(drop)?,
        }
    }
}

fn text(message: &Msg) -> String {
    message.get_payload().unwrap_or_default()
}

async fn within<T>(limit: Duration, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err((ErrorKind::Io, "no answer in time").into()),
    }
}
