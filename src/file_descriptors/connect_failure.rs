//! Whose failure it is that a connection could not be made.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The numbers of Linux; the BSDs have others for the last three.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
const ENOMEM: i32 = 12;
#[cfg(any(target_os = "linux", target_os = "android"))]
const ENOBUFS: i32 = 105;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const ENOBUFS: i32 = 55;

/// Whether a connection to `address`, or a look-up of a name, has failed for want of something that this process or machine has only so
/// many of: descriptors, memory, buffers, local ports. It says nothing about the backend then.
pub fn is_ours(error: &io::Error, address: Option<SocketAddr>) -> bool {
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOMEM | ENOBUFS) => true,
        _ if error.kind() == io::ErrorKind::AddrNotAvailable => address.is_none_or(has_route),
        _ => false,
    }
}

/// Whether the machine has a route to `address`, and an address to send from. Where it has, `EADDRNOTAVAIL` means that all local ports
/// to there are taken. Where it has none, as for an address of IPv6 on a machine without, the backend cannot be reached from here.
///
/// Ports of UDP are others than those of TCP, and to connect by UDP sends nothing.
pub fn has_route(address: SocketAddr) -> bool {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any).and_then(|socket| socket.connect(address)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_has_only_so_many_of_is_no_fault_of_a_backend() {
        let there = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        for (number, expected) in [
            (EMFILE, true),
            (ENFILE, true),
            (ENOMEM, true),
            (ENOBUFS, true),
            // EADDRNOTAVAIL to an address that can be reached: no port is left.
            (if cfg!(target_os = "linux") { 99 } else { 49 }, true),
            // ECONNREFUSED, ECONNRESET, ENETUNREACH, EHOSTUNREACH, EACCES.
            (111, false),
            (104, false),
            (101, false),
            (113, false),
            (13, false),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(is_ours(&error, there), expected, "{error}");
        }
        assert!(!is_ours(&io::ErrorKind::UnexpectedEof.into(), there));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_address_that_cannot_be_reached_from_here_is_the_backends() {
        // No machine has an address in this net, and a socket of IPv6 cannot reach it.
        let error = io::Error::from_raw_os_error(99);
        let nowhere = SocketAddr::from(([255, 255, 255, 255], 1));
        assert!(!is_ours(&error, Some(nowhere)));
    }
}
