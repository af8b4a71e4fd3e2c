//! Messages with descriptors, between two processes of one user.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::Message;

/// Descriptors that go with one message; Linux takes 253.
pub(super) const DESCRIPTORS_MAX: usize = 128;
/// Bytes of a message: that of so many addresses has about 8 kB.
const BYTES_MAX: usize = 32 * 1024;
/// Processes that may wait to be accepted.
const BACKLOG: i32 = 4;

/// A connection to the other process.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

pub(super) fn listen(file: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
    socket.bind(&name(file)?)?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// The name that the processes of this user know each other by. Made from the path as it was given, and not from what it leads to: a
/// link that is moved from one release to the next stays the same file.
fn name(file: &Path) -> io::Result<SockAddr> {
    let path = std::path::absolute(file)?;
    // FNV-1a: the same in each version of the binary, which a hasher of the standard library need not be.
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    SockAddr::unix(format!("\0isobar/{}/{hash:016x}", user()))
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Which process has the name, of whichever user.
pub(super) fn holder(file: &Path) -> Option<String> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(&name(file).ok()?).ok()?;
    let who = UnixStream::from_std(StdStream::from(OwnedFd::from(socket))).ok()?.peer_cred().ok()?;
    Some(format!("pid {} of uid {}", who.pid().unwrap_or_default(), who.uid()))
}

impl Channel {
    pub(super) fn connect(file: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&name(file)?)?;
        let channel = Self(UnixStream::from_std(StdStream::from(OwnedFd::from(socket)))?);
        if channel.is_trusted()? { Ok(channel) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    /// Waits for a process of this user, or of root.
    pub(super) async fn accept(listener: &UnixListener) -> io::Result<Self> {
        loop {
            let channel = Self(listener.accept().await?.0);
            if channel.is_trusted()? {
                return Ok(channel);
            }
        }
    }

    fn is_trusted(&self) -> io::Result<bool> {
        let uid = self.0.peer_cred()?.uid();
        Ok(uid == 0 || uid == user())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        let pid = self.0.peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    pub(super) async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let sent = self.0.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("too many descriptors for a message"));
            }
            Ok(sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
        });
        // A message goes whole or not at all.
        sent.await.map(|_| ())
    }

    pub(super) async fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        let mut bytes = vec![0; BYTES_MAX];
        let received = self.0.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    descriptors.extend(some);
                }
            }
            // Cut where this process may open no further descriptors.
            if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(io::Error::other(
                    "a message with sockets did not come whole: too few descriptors are allowed",
                ));
            }
            Ok((got.bytes, descriptors))
        });
        let (length, descriptors) = received.await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&bytes[..length])?, descriptors))
    }
}
