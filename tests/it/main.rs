//! Behaviour over real sockets: a proxy as an embedding program starts it, scripted backends, and clients that send what
//! they please. One file per behaviour.

mod harness;
mod smoke;
