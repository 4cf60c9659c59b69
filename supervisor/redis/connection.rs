//! The connection to a Redis. It is shared by all callers, and made anew after every failure.
//!
//! The connection manager of the `redis` crate is not used: it keeps a connection that answers nothing, since a time
//! limit is no reason for it to connect again, and it keeps the outcome of an attempt to connect that was refused (a
//! password that is changed) or answered with something else than Redis's protocol (a proxy's error page).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, RedisResult,
    ScriptInvocation,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The shortest time between the beginnings of two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// The code of the error of a script that finds that the store has lost data.
pub(crate) const FORGOTTEN: &str = "FORGOTTEN";

/// Errors that a healthy connection reports: the scripts' own, and those of a Redis that has no room.
const ANSWERS: [&str; 3] = [FORGOTTEN, "OOM", "MISCONF"];

/// A connection that is made at its first use, and again at the first use after a failure.
pub(crate) struct Connection {
    connector: Arc<Connector>,
    /// Tracks the calls, which go on when their callers no longer wait.
    calls: TaskTracker,
}

struct Connector {
    client: Client,
    config: AsyncConnectionConfig,
    current: Mutex<Current>,
}

/// A connection, or an attempt to make one. All callers wait for the same attempt.
type Connecting = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

#[derive(Default)]
struct Current {
    /// `None` after a failure.
    connecting: Option<Connecting>,
    /// The number of attempts so far, which names the latest one.
    attempts: u64,
    /// When the latest attempt began.
    begun: Option<Instant>,
}

impl Connection {
    /// `timeout` limits connecting, authentication included, and the wait for each answer.
    pub(crate) fn new(client: Client, timeout: Duration) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        Self {
            connector: Arc::new(Connector {
                client,
                config,
                current: Mutex::default(),
            }),
            calls: TaskTracker::new(),
        }
    }

    /// Invokes a script. After a failure that may be the connection's, nobody uses the connection any more.
    ///
    /// The call goes on when the caller no longer waits: only its own time limit tells whether the connection is dead.
    pub(crate) async fn invoke<T: FromRedisValue + Send + 'static>(
        &self,
        call: ScriptInvocation<'static>,
    ) -> RedisResult<T> {
        let (sender, answer) = oneshot::channel();
        let connector = self.connector.clone();
        let calling = async move {
            let _ = sender.send(connector.invoke(call).await);
        };
        self.calls.spawn(calling.in_current_span());
        answer.await.unwrap_or_else(|_| {
            Err((ErrorKind::Client, "the call was ended with the runtime").into())
        })
    }
}

impl Connector {
    async fn invoke<T: FromRedisValue>(
        self: &Arc<Self>,
        call: ScriptInvocation<'static>,
    ) -> RedisResult<T> {
        let (attempt, connecting) = self.connect();
        let answered = async { call.invoke_async(&mut connecting.await?).await };
        let answer = answered.await;
        if let Err(error) = &answer
            && !is_answer(error)
        {
            self.discard(attempt);
        }
        answer
    }

    /// Returns the current connection, and the number of the attempt that it came from.
    fn connect(self: &Arc<Self>) -> (u64, Connecting) {
        let mut current = self.lock();
        if let Some(connecting) = &current.connecting {
            return (current.attempts, connecting.clone());
        }
        let now = Instant::now();
        let begin = current
            .begun
            .map_or(now, |begun| now.max(begun + RECONNECT_PAUSE));
        let connector = self.clone();
        let attempt = async move {
            sleep_until(begin).await;
            let Self { client, config, .. } = &*connector;
            client
                .get_multiplexed_async_connection_with_config(config)
                .await
        };
        let connecting = attempt.boxed().shared();
        *current = Current {
            connecting: Some(connecting.clone()),
            attempts: current.attempts + 1,
            begun: Some(begin),
        };
        (current.attempts, connecting)
    }

    /// Lets the next caller connect again, unless another one does already.
    fn discard(&self, attempt: u64) {
        let mut current = self.lock();
        if current.attempts == attempt {
            current.connecting = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("no holder of this lock panics")
    }
}

fn is_answer(error: &RedisError) -> bool {
    error.code().is_some_and(|code| ANSWERS.contains(&code))
}

// Not derived, since the client prints the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}
