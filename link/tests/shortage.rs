//! What happens to a link while this process may open no further descriptor. The limit is that of the whole process, so
//! these tests have one of their own, and take turns.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy allows it in test functions only, not in what they call"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastvideo_link::{Listener, ReceiveError, Receiver, Sender, connect, pair};
use ipc_channel::ipc::IpcSender;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

type TestListener = Listener<u32, String, String>;
type WorkerEnds = (Receiver<String>, Sender<String>);

/// The soft limit while descriptors are short. Few, so that all are soon in use.
const FEW: u64 = 100;

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    // A test that has failed has given everything back.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uses up the descriptors of this process while it lives.
struct Shortage {
    soft: u64,
    hard: u64,
    taken: Vec<File>,
}

impl Shortage {
    /// Leaves so many descriptors free.
    fn but_for(free: usize) -> Self {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, FEW.min(hard), hard).unwrap();
        let opened = std::iter::from_fn(|| File::open("/dev/null").ok());
        let mut shortage = Self {
            soft,
            hard,
            taken: opened.collect(),
        };
        let taken = shortage.taken.len();
        assert!(taken >= free, "{taken} descriptors were free");
        shortage.taken.truncate(taken - free);
        shortage
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard).unwrap();
    }
}

#[test]
fn a_long_message_for_which_there_is_no_descriptor_is_a_shortage() {
    let _turn = turn();
    let (mut sender, mut receiver) = pair::<Vec<u8>>().unwrap();
    // More than one packet of ipc-channel holds.
    sender.send(vec![7; 300_000], &[]).unwrap();
    let shortage = Shortage::but_for(0);
    let received = receiver.receive();
    drop(shortage);
    match received {
        Err(ReceiveError::Shortage(error)) => {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EMFILE));
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("the message was received"),
    }
}

#[test]
fn messages_that_need_no_descriptor_are_received_in_a_shortage() {
    let _turn = turn();
    let (mut sender, mut receiver) = pair::<Vec<u8>>().unwrap();
    sender.send(vec![7; 100_000], &[]).unwrap();
    let shortage = Shortage::but_for(0);
    let received = receiver.receive();
    drop(shortage);
    assert_eq!(received.unwrap().0.len(), 100_000);
}

/// A listener and a worker that has connected to it and was not accepted yet.
fn connected() -> (TestListener, WorkerEnds) {
    let (listener, invitation) = TestListener::open().unwrap();
    let worker = connect(invitation.name, invitation.descriptors.as_fd(), 7_u32).unwrap();
    (listener, worker)
}

#[test]
fn a_worker_for_whose_link_there_are_no_descriptors_is_a_shortage() {
    let _turn = turn();
    // None for the connection; none for the channels in it; one for the two of them.
    for free in 0..3 {
        let (listener, _worker) = connected();
        let shortage = Shortage::but_for(free);
        let accepted = listener.accept();
        drop(shortage);
        match accepted {
            Err(ReceiveError::Shortage(_)) => {}
            Err(other) => panic!("{free}: {other:?}"),
            Ok(_) => panic!("{free}: accepted"),
        }
    }
    let (listener, _worker) = connected();
    let shortage = Shortage::but_for(3);
    let accepted = listener.accept();
    drop(shortage);
    assert_eq!(accepted.unwrap().0, 7);
}

#[test]
fn a_hello_that_has_no_channels_is_garbage_when_there_was_room_for_them() {
    let _turn = turn();
    let (listener, invitation) = TestListener::open().unwrap();
    // The hello, and the first and the second of no channels.
    let forged: IpcSender<(u32, usize, usize)> = IpcSender::connect(invitation.name).unwrap();
    forged.send((7, 0, 1)).unwrap();
    match listener.accept() {
        Err(ReceiveError::Garbage(said)) => {
            assert_eq!(said, "a message came without its channels");
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("accepted"),
    }
}
