//! What a client sends to its session.

use std::collections::VecDeque;
use std::future::pending;

use tokio::sync::mpsc;

use super::command::Inbound;

/// Number of messages that are kept while only the client's leaving is waited for.
const MAX_KEPT: usize = 16;

/// A client's messages, in their order. Boxed in their channel, which has room for 32 and is mostly empty.
#[derive(Debug)]
pub(super) struct Inbox {
    messages: mpsc::Receiver<Box<Inbound>>,
    /// Messages that came while [`Inbox::gone`] was waited for.
    kept: VecDeque<Inbound>,
}

impl Inbox {
    pub(super) fn new(messages: mpsc::Receiver<Box<Inbound>>) -> Self {
        Self {
            messages,
            kept: VecDeque::new(),
        }
    }

    /// Waits for the next message; `None` once the connection is gone.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(super) async fn recv(&mut self) -> Option<Inbound> {
        match self.kept.pop_front() {
            Some(message) => Some(message),
            None => self.messages.recv().await.map(|message| *message),
        }
    }

    /// Waits for the next message; with `only_gone`, only for the client's leaving, as [`Self::gone`] does.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(super) async fn recv_or_gone(&mut self, only_gone: bool) -> Option<Inbound> {
        match only_gone {
            true => {
                self.gone().await;
                None
            }
            false => self.recv().await,
        }
    }

    /// Waits until the client is gone. Other messages are kept for [`Inbox::recv`]; a client that sends many of them is
    /// not seen to leave.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(super) async fn gone(&mut self) {
        while self.kept.len() < MAX_KEPT {
            match self.messages.recv().await.map(|message| *message) {
                None | Some(Inbound::Gone | Inbound::Closed) => return,
                Some(message) => self.kept.push_back(message),
            }
        }
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::ingress::websocket::TransportViolation;

    #[tokio::test]
    async fn messages_come_in_order_and_the_end_is_seen_before_them() {
        let (client, messages) = mpsc::channel(4);
        let mut inbox = Inbox::new(messages);
        for violation in [TransportViolation::TooLarge, TransportViolation::NotUtf8] {
            client
                .send(Box::new(Inbound::Violation(violation)))
                .await
                .unwrap();
        }
        assert!(inbox.gone().now_or_never().is_none());
        let third = Inbound::Violation(TransportViolation::Protocol);
        client.send(Box::new(third)).await.unwrap();
        for expected in [
            TransportViolation::TooLarge,
            TransportViolation::NotUtf8,
            TransportViolation::Protocol,
        ] {
            let message = inbox.recv().await;
            assert!(matches!(message, Some(Inbound::Violation(v)) if v == expected));
        }
        client.send(Box::new(Inbound::Gone)).await.unwrap();
        inbox.gone().await;
        drop(client);
        inbox.gone().await;
        assert!(inbox.recv().await.is_none());
    }
}
