//! The Unix socket: the same as the address, for one user of this machine.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// No other user may connect.
const MODE: u32 = 0o600;
/// Connections that the kernel holds before they are accepted.
const BACKLOG: i32 = 64;

/// A bound socket that listens under a name of its own beside its place. Dropped, its file is removed.
#[derive(Debug)]
pub(super) struct BoundSocket {
    listener: UnixListener,
    file: SocketFile,
    place: PathBuf,
}

/// The file of a socket. Dropped, it is removed, unless another process has put one of its own there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number, by which it is known again.
    identity: (u64, u64),
}

impl BoundSocket {
    /// Binds it. What a process that has ended left there is replaced, and so is the socket of one that still listens where this
    /// process takes its place (`replacing`).
    ///
    /// The socket is made under another name beside its place, given its mode before it listens, and then moved there by
    /// [`BoundSocket::place`]: so no other user can ever connect, and there is no moment without a file.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the folder cannot be written to.
    pub(super) fn bind(path: &Path, replacing: bool) -> io::Result<Self> {
        is_free(path, replacing)?;
        let making = path.with_extension(format!("{}.new", std::process::id()));
        // Only this process has its number; what is there was left by an earlier one.
        let _ = fs::remove_file(&making);
        let made = Self::make(&making, path);
        if made.is_err() {
            let _ = fs::remove_file(&making);
        }
        made
    }

    fn make(making: &Path, path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(making)?)?;
        fs::set_permissions(making, fs::Permissions::from_mode(MODE))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let file = SocketFile { path: making.to_owned(), identity: identity(making)? };
        Ok(Self { listener: socket.into(), file, place: path.to_owned() })
    }

    /// Moves it to its place, where clients find it from now on. Once is enough.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn place(&mut self) -> io::Result<()> {
        fs::rename(&self.file.path, &self.place)?;
        self.file.path.clone_from(&self.place);
        Ok(())
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Whether a socket may be put there.
fn is_free(path: &Path, replacing: bool) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
    }
    match UnixStream::connect(path) {
        Ok(_) if replacing => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // What cannot be removed now is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> io::Result<BoundSocket> {
        let mut socket = BoundSocket::bind(path, false)?;
        socket.place()?;
        Ok(socket)
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("isobar-socket-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn is_for_one_user_and_gone_at_the_end() {
        let folder = Folder::new("one");
        let path = folder.0.join("isobar.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn replaces_what_was_left_and_nothing_else() {
        let folder = Folder::new("left");
        let path = folder.0.join("isobar.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = bind(&path).unwrap();
        // Another process has put its own there: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
        assert!(bind(&folder.0.join("nowhere/isobar.sock")).is_err());
    }

    #[test]
    fn the_next_process_puts_its_own_in_the_place() {
        let folder = Folder::new("next");
        let path = folder.0.join("isobar.sock");
        let before = bind(&path).unwrap();
        let mut next = BoundSocket::bind(&path, true).unwrap();
        assert_eq!(identity(&path).unwrap(), before.file.identity, "it is not there yet");
        next.place().unwrap();
        assert_eq!(identity(&path).unwrap(), next.file.identity);
        drop(before);
        UnixStream::connect(&path).unwrap();
        drop(next);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}
