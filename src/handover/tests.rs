use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;

/// A path of its own; nothing need be there.
fn file() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/isobar-handover-{}-{}/lb.toml", std::process::id(), NEXT.fetch_add(1, Relaxed)).into()
}

fn socket() -> (SocketAddr, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap(), listener.into())
}

fn bound(sockets: &[(SocketAddr, OwnedFd)]) -> Vec<(SocketAddr, SocketAddr)> {
    let clone = |fd: &OwnedFd| TcpListener::from(fd.as_fd().try_clone_to_owned().unwrap());
    sockets.iter().map(|(address, fd)| (*address, clone(fd).local_addr().unwrap())).collect()
}

/// Both sides: what the one offers, and what the other gets.
async fn hand_over(listeners: usize, admin: bool) -> (Sockets, Sockets) {
    let file = file();
    let offered =
        Arc::new(Sockets { listeners: (0..listeners).map(|_| socket()).collect(), admin: admin.then(socket) });
    let offer = Offer::make(&file).unwrap();
    let giving = tokio::spawn({
        let offered = Arc::clone(&offered);
        async move {
            let visitor = offer.visitor(|| true).await.unwrap();
            assert_eq!(visitor.pid(), Some(std::process::id()));
            visitor.give(&offered).await.unwrap();
            drop(offer);
            visitor.released().await.unwrap();
        }
    });
    let predecessor = Predecessor::find(&file).await.expect("the other side");
    assert!(predecessor.is_stopping());
    let taken = predecessor.take().await.unwrap();
    predecessor.ready().await.unwrap();
    assert!(Predecessor::find(&file).await.is_none(), "it offers nothing any more");
    giving.await.unwrap();
    (Arc::into_inner(offered).unwrap(), taken)
}

#[tokio::test]
async fn each_socket_arrives_with_its_address() {
    let most = channel::DESCRIPTORS_MAX;
    for (listeners, admin) in [(0, false), (0, true), (1, false), (3, true), (most, true), (2 * most + 1, false)] {
        let (offered, taken) = hand_over(listeners, admin).await;
        let addresses: Vec<_> = offered.listeners.iter().map(|(address, _)| (*address, *address)).collect();
        assert_eq!(bound(&taken.listeners), addresses, "{listeners} {admin}");
        let admins = |it: Sockets| it.admin.map(|admin| bound(&[admin]));
        assert_eq!(admins(taken), admins(offered), "{listeners} {admin}");
    }
}

#[tokio::test]
async fn a_visitor_that_only_looks_or_fails_is_not_waited_for() {
    let file = file();
    let offer = Offer::make(&file).unwrap();
    let serving = tokio::spawn(async move {
        let visitor = offer.visitor(|| false).await.unwrap();
        let failed = visitor.give(&Sockets::default()).await;
        // The next one is served as if there had been none before.
        let visitor = offer.visitor(|| false).await.unwrap();
        (failed, visitor.give(&Sockets::default()).await)
    });
    let looking = Predecessor::find(&file).await.unwrap();
    assert!(!looking.is_stopping());
    drop(looking);
    let failing = Predecessor::find(&file).await.unwrap();
    failing.take().await.unwrap();
    drop(failing);
    let good = Predecessor::find(&file).await.unwrap();
    good.take().await.unwrap();
    // The other side ends without a word, which is as good as letting go.
    good.ready().await.unwrap();
    let (failed, given) = serving.await.unwrap();
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    given.unwrap();
}

#[tokio::test]
async fn one_process_offers_a_file() {
    let (one, other) = (file(), file());
    assert!(Predecessor::find(&one).await.is_none());
    let offer = Offer::make(&one).unwrap();
    assert_eq!(Offer::make(&one).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(Offer::make(&other).unwrap());
    drop(offer);
    drop(Offer::make(&one).unwrap());
}

#[test]
fn listeners_take_what_is_bound_to_their_address() {
    let (address, first) = socket();
    let second = first.as_fd().try_clone_to_owned().unwrap();
    let (other, third) = socket();
    let mut inherited = Inherited::new(vec![(address, first), (other, third), (address, second)]);
    assert_eq!(inherited.take(address).len(), 2);
    assert_eq!(inherited.take(address).len(), 0);
    assert_eq!(inherited.addresses(), [address, other, address]);
    assert_eq!(inherited.rest().len(), 1);
    assert_eq!(inherited.rest().len(), 0);
}
