//! Where there is no `splice(2)`: bodies are copied.

use std::io;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::file_descriptors::Extra;

/// None can be had.
#[derive(Debug)]
pub enum Pipe {}

impl Pipe {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn open(_: Extra) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        match *self {}
    }

    /// Takes what has come on `tcp`.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_fill(&mut self, _: &TcpStream, _: &mut Context<'_>, _: u64) -> Poll<io::Result<usize>> {
        match *self {}
    }

    /// Gives `tcp` as much as it takes.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_drain(&mut self, _: &TcpStream, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match *self {}
    }
}
