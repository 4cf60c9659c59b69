//! The sockets that the program listens on: those that the service manager has opened and passes on, or else its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Domain, SockRef, Type};
use tokio::net::TcpListener;

use crate::settings::Surroundings;

/// The variables by which sockets are passed. Workers see none of them.
const PROCESS: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";
/// The descriptor of the first one.
const FIRST: RawFd = 3;
/// The largest number of them that is believed.
const MAX_SOCKETS: usize = 1024;

/// The names of the sockets for everybody and for operators.
const HTTP: &str = "http";
const ADMIN: &str = "admin";

/// Sockets that were passed on by whoever started the program, in place of addresses of its own.
#[derive(Debug, Default)]
pub struct PassedSockets {
    pub(crate) http: Option<std::net::TcpListener>,
    pub(crate) admin: Option<std::net::TcpListener>,
}

/// Why sockets that were passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    #[error("`{COUNT}` must be the number of sockets that are passed, given {0:?}")]
    Count(String),
    #[error(
        "`{NAMES}` must have a name for each of the {sockets} sockets that are passed, given {given:?}"
    )]
    Names { sockets: usize, given: String },
    #[error(
        "the socket that is passed as descriptor {descriptor} (`{name}`) must be a listening TCP socket, but {problem}"
    )]
    Socket {
        descriptor: RawFd,
        name: String,
        problem: String,
    },
    #[error(
        "the socket that is passed as descriptor {descriptor} must be named {expected}, given `{name}`"
    )]
    Unknown {
        descriptor: RawFd,
        name: String,
        expected: &'static str,
    },
    #[error("two sockets that are passed have the name `{0}`")]
    Twice(String),
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {host}:{port}")]
pub struct ListenError {
    host: String,
    port: u16,
    source: io::Error,
}

/// Returns whether sockets are passed to this process, and not to another one that has left its variables.
fn are_passed(surroundings: &Surroundings) -> bool {
    let process = surroundings.variable(PROCESS);
    process.is_some_and(|process| process.parse() == Ok(std::process::id()))
}

/// Returns whether a socket for operators is passed to this process.
pub(crate) fn has_admin(surroundings: &Surroundings) -> bool {
    let names = surroundings.variable(NAMES).unwrap_or_default();
    are_passed(surroundings) && names.split(':').any(|name| name == ADMIN)
}

impl PassedSockets {
    /// Takes the sockets that are passed to this process. With `has_admin` there may be one for operators. Must be called
    /// once, since it takes their descriptors.
    ///
    /// # Errors
    /// Returns an error when one of them is no listening TCP socket, or it is not clear what it is for.
    pub fn take(surroundings: &Surroundings, has_admin: bool) -> Result<Self, PassedError> {
        let mut passed = Self::default();
        let given = surroundings.variable(COUNT);
        let given = given.filter(|_| are_passed(surroundings));
        let Some(given) = given else {
            return Ok(passed);
        };
        let sockets: Option<usize> = given.parse().ok();
        let sockets = sockets
            .filter(|count| *count <= MAX_SOCKETS)
            .ok_or_else(|| PassedError::Count(given.to_owned()))?;
        let names: Vec<String> = match surroundings.variable(NAMES) {
            Some(names) if !names.is_empty() => names.split(':').map(str::to_owned).collect(),
            _ => vec![String::new(); sockets],
        };
        if names.len() != sockets {
            let given = names.join(":");
            return Err(PassedError::Names { sockets, given });
        }
        let is_only = names.len() == 1;
        for (descriptor, name) in (FIRST..).zip(names) {
            let socket = listener(descriptor);
            let socket = socket.map_err(|problem| PassedError::Socket {
                descriptor,
                name: name.clone(),
                problem,
            })?;
            let place = match name.as_str() {
                HTTP => &mut passed.http,
                ADMIN if has_admin => &mut passed.admin,
                // Without a name of its own a socket has that of its unit, or none.
                name if is_only && name != ADMIN => &mut passed.http,
                _ => {
                    let expected = match has_admin {
                        true => "`http` or `admin`",
                        false => "`http`",
                    };
                    return Err(PassedError::Unknown {
                        descriptor,
                        name,
                        expected,
                    });
                }
            };
            if place.replace(socket).is_some() {
                return Err(PassedError::Twice(name));
            }
        }
        Ok(passed)
    }
}

/// Takes a descriptor as a listening TCP socket, which no worker inherits.
#[expect(unsafe_code, reason = "a passed descriptor is a number")]
fn listener(descriptor: RawFd) -> Result<std::net::TcpListener, String> {
    // SAFETY: the borrow ends with this block, and the first call fails when the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD).map_err(|error| error.desc().to_owned())?;
    let flags = FdFlag::from_bits_retain(flags) | FdFlag::FD_CLOEXEC;
    fcntl(borrowed, FcntlArg::F_SETFD(flags)).map_err(|error| error.desc().to_owned())?;
    // SAFETY: it is open, and `LISTEN_PID` says that it was passed to this process, in which nothing else uses it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let wrong = |error: io::Error| error.to_string();
    let socket = SockRef::from(&owned);
    let domain = socket.domain().map_err(wrong)?;
    if domain != Domain::IPV4 && domain != Domain::IPV6 {
        return Err("it is a socket of another kind".to_owned());
    }
    if socket.r#type().map_err(wrong)? != Type::STREAM {
        return Err("it is a socket of another kind".to_owned());
    }
    if !socket.is_listener().map_err(wrong)? {
        return Err("it does not listen".to_owned());
    }
    socket.set_nonblocking(true).map_err(wrong)?;
    Ok(owned.into())
}

/// Returns the socket that was passed, or else one of its own that is bound to the address; and the address, since the
/// operating system may have chosen the port.
///
/// # Errors
/// Returns an error when the address cannot be bound.
pub(crate) async fn listen(
    passed: Option<std::net::TcpListener>,
    host: &str,
    port: u16,
) -> Result<(TcpListener, SocketAddr), ListenError> {
    let listening = async {
        let listener = match passed {
            Some(passed) => TcpListener::from_std(passed)?,
            None => TcpListener::bind((host, port)).await?,
        };
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    listening.await.map_err(|source| ListenError {
        host: host.to_owned(),
        port,
        source,
    })
}
