//! New connections to backends.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Context;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::backend::BackendState;
use crate::config::{Address, PoolConfig};

use super::{Connection, Link, Transport};

/// Reads of a response's head and body go through a buffer of at most this size: large enough for few system calls a
/// megabyte, small enough to stay in a core's cache.
const BUFFER_BYTES: usize = 64 * 1024;

/// Connects to `backend`. Names are looked up again each time, and their addresses tried in turn.
///
/// # Errors
/// The last address's, when none can be connected to.
pub async fn connect(transport: &Rc<Transport>, backend: &BackendState, pool: PoolConfig) -> io::Result<Connection> {
    let tcp = match &backend.address {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name(host, port) => TcpStream::connect((&**host, *port)).await?,
    };
    tcp.set_nodelay(true)?;
    let link = Link::new(tcp);
    let (sender, mut driver) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(link.io()))
        .await
        .map_err(io::Error::other)?;
    let driven = Rc::clone(&link);
    tokio::task::spawn_local(async move {
        let mut waker = None;
        // How it ended is told to whoever waits for a response.
        let _ = poll_fn(|cx| {
            let waker = waker.get_or_insert_with(|| driven.waker(cx.waker()));
            driver.poll_without_shutdown(&mut Context::from_waker(waker))
        })
        .await;
        driven.end(driver.into_parts().read_buf);
    });
    Ok(Connection { sender, link, reused: false, transport: Rc::clone(transport), slot: backend.id, pool })
}
