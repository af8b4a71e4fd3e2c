//! Where a running isobar is asked: at its admin address or at its Unix socket.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::lookup_host;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::{self, AdminConfig, Problems, Secret};
use crate::http_client::To;

/// Where isobar is asked unless something says otherwise.
pub const ADMIN_DEFAULT: &str = "127.0.0.1:9900";

/// How long a socket may take to let a connection in: longer only where its process hangs.
const SOCKET_LIMIT: Duration = Duration::from_secs(1);

/// Where the admin address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A host or an IP address, and a port.
    Address(String),
    /// A Unix socket.
    Socket(PathBuf),
}

impl AdminAddress {
    /// As the command line has it: `127.0.0.1:9900` or `unix:/run/isobar.sock`.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("unix:") {
            Some(path) => Self::Socket(path.into()),
            None => Self::Address(text.into()),
        }
    }

    /// As a file has it, with the token that it has: the socket where this user can connect to it, else the address.
    ///
    /// # Errors
    /// When the file does not say, or has neither.
    pub fn of_file(file: &Path) -> Result<(Self, Option<Secret>), Unknown> {
        let admin = config::load_admin(file).map_err(Unknown::Refused)?;
        let off = || Unknown::Off { file: file.to_owned() };
        let AdminConfig { address, token, unix_socket } = admin.ok_or_else(off)?;
        let place = match (unix_socket, address) {
            (Some(path), None) => Self::Socket(path),
            (Some(path), Some(_)) if connect_socket(&path, SOCKET_LIMIT).is_ok() => Self::Socket(path),
            (_, Some(address)) => Self::Address(address.to_string()),
            (None, None) => return Err(off()),
        };
        Ok((place, token))
    }

    /// The ways to connect there, in the order in which they are tried, each with what it wants for a `Host`. What listens on
    /// every address listens on loopback.
    pub(super) async fn ways(&self) -> io::Result<Vec<(To, String)>> {
        let address = match self {
            Self::Socket(path) => return Ok(vec![(To::Socket(path.clone()), "localhost".into())]),
            Self::Address(address) => address,
        };
        let found = lookup_host(address).await?.map(reachable);
        let ways: Vec<_> = found.map(|address| (To::Address(address), address.to_string())).collect();
        if ways.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")) } else { Ok(ways) }
    }
}

impl Default for AdminAddress {
    fn default() -> Self {
        Self::Address(ADMIN_DEFAULT.into())
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a file does not say where isobar is asked.
#[derive(Debug)]
pub enum Unknown {
    /// It cannot be read, or is wrong about that.
    Refused(Problems),
    /// It has switched the admin address off and has no socket.
    Off {
        /// The file.
        file: PathBuf,
    },
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(problems) => problems.fmt(f),
            Self::Off { file } => {
                write!(f, "{} has switched the admin address off and has no unix_socket", file.display())
            }
        }
    }
}

impl std::error::Error for Unknown {}

/// A connection to a Unix socket, which a process that hangs does not hold up.
fn connect_socket(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, limit)?;
    Ok(socket.into())
}

/// What listens on every address listens on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn places() {
        assert_eq!(AdminAddress::parse("unix:/run/isobar.sock"), AdminAddress::Socket("/run/isobar.sock".into()));
        assert_eq!(AdminAddress::parse("lb1:9900").to_string(), "lb1:9900");
        assert_eq!(AdminAddress::parse("unix:/x").to_string(), "unix:/x");
        assert_eq!(AdminAddress::default().to_string(), "127.0.0.1:9900");
    }

    #[test]
    fn an_address_for_all_is_asked_on_loopback() {
        for (written, asked) in
            [("0.0.0.0:9900", "127.0.0.1:9900"), ("[::]:9900", "[::1]:9900"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(reachable(written.parse().unwrap()), asked.parse().unwrap());
        }
    }

    /// What a file says, whatever else is wrong with it.
    #[test]
    fn a_file_says_where() {
        let folder = std::env::temp_dir().join(format!("isobar-place-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, socket) = (folder.join("lb.toml"), folder.join("s"));
        let said = |text: &str| {
            fs::write(&file, text.replace("SOCKET", socket.to_str().unwrap())).unwrap();
            AdminAddress::of_file(&file)
                .map(|(place, token)| (place.to_string(), token.is_some()))
                .map_err(|it| it.to_string())
        };
        let address = |text: &str, token| Ok((text.to_owned(), token));
        let at_socket = Ok((format!("unix:{}", socket.display()), false));
        assert_eq!(said(""), address("127.0.0.1:9900", false));
        assert_eq!(said("[admin]\naddress = \"127.0.0.1:1\"\n[[route]]\nnope = 1\n"), address("127.0.0.1:1", false));
        assert_eq!(said("[admin]\ntoken = \"0123456789abcdef\"\n"), address("127.0.0.1:9900", true));
        assert_eq!(said("[admin]\ntoken = \"${ISOBAR_UNSET_IN_TESTS}\"\n"), address("127.0.0.1:9900", false));
        let both = "[admin]\naddress = \"127.0.0.1:1\"\nunix_socket = \"SOCKET\"\n";
        assert_eq!(said(both), address("127.0.0.1:1", false), "nothing is there");
        let only = "[admin]\nenabled = false\nunix_socket = \"SOCKET\"\n";
        assert_eq!(said(only), at_socket);
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(said(both), at_socket);
        drop(listener);
        assert_eq!(said(both), address("127.0.0.1:1", false), "nothing listens there");
        let name = file.display();
        assert_eq!(
            said("[admin]\nenabled = false\n"),
            Err(format!("{name} has switched the admin address off and has no unix_socket"))
        );
        assert!(said("[admin]\naddress = 1\n").unwrap_err().contains("lb.toml:2:11: admin.address: wrong type"));
        assert!(said("x = [").unwrap_err().contains("lb.toml:1:6: unclosed array"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
