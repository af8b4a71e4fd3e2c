//! The Unix socket: the same as the address, for one user of this machine.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Who else may connect: nobody.
const MODE: u32 = 0o600;
/// Connections that the kernel holds before they are accepted.
const BACKLOG: i32 = 64;

/// A bound socket. Dropped, its file is removed, unless somebody else has put one of his own there.
#[derive(Debug)]
pub(super) struct BoundSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number, by which it is known again.
    identity: (u64, u64),
}

impl BoundSocket {
    /// Binds it. What a process that has ended left there is replaced.
    ///
    /// The socket is made under another name beside it, given its mode before it listens, and then moved to its place: so
    /// nobody else can ever connect, and there is no moment without a file.
    ///
    /// # Errors
    /// When another process listens there, something else than a socket is there, or the folder cannot be written to.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        is_free(path)?;
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
        let identity = identity(making)?;
        fs::rename(making, path)?;
        Ok(Self { listener: socket.into(), file: SocketFile { path: path.to_owned(), identity } })
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Whether a socket may be put there.
fn is_free(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
    }
    match UnixStream::connect(path) {
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
        let socket = BoundSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn replaces_what_was_left_and_nothing_else() {
        let folder = Folder::new("left");
        let path = folder.0.join("isobar.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = BoundSocket::bind(&path).unwrap();
        // Somebody else puts his own there: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
        assert!(BoundSocket::bind(&folder.0.join("nowhere/isobar.sock")).is_err());
    }
}
