//! Sockets that are known to have nothing to read.
//!
//! A client's socket is looked at whenever its task runs, several times a request, most often to see whether the peer has
//! closed it. Asking tokio costs about 170 instructions each time, and the answer cannot have changed since the last time unless the
//! event loop has called the waker that was left there. So the waker that is left is one that notes being called, and until
//! then the socket is taken to be as dry as it was found.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, ReadBuf};

/// What is known of a socket that one task reads from.
#[derive(Debug, Default)]
pub struct Dry(RefCell<Option<Left>>);

/// The waker that was left at the socket.
#[derive(Debug)]
struct Left {
    waker: Waker,
    note: Arc<Note>,
}

/// Lives on one thread; a waker has to be `Sync` all the same.
#[derive(Debug)]
struct Note {
    task: Waker,
    dry: AtomicBool,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.dry.store(false, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

impl Left {
    fn by(task: &Waker) -> Self {
        let note = Arc::new(Note { task: task.clone(), dry: AtomicBool::new(false) });
        Self { waker: Waker::from(Arc::clone(&note)), note }
    }
}

impl Dry {
    /// Reads from `socket`, if there may be something.
    pub fn poll_read(
        &self,
        socket: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(cx, |cx| Pin::new(socket).poll_read(cx, buf))
    }

    /// Has the task that waits for the socket run.
    pub fn wake(&self) {
        if let Some(left) = &*self.0.borrow() {
            left.note.wake_by_ref();
        }
    }

    /// Has `read` look at the socket, if there may be something.
    pub fn poll<T>(&self, cx: &mut Context<'_>, read: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let mut left = self.0.borrow_mut();
        // Another task reads from a socket once it has become a tunnel.
        if left.as_ref().is_some_and(|left| !left.note.task.will_wake(cx.waker())) {
            *left = None;
        }
        let Left { waker, note } = left.get_or_insert_with(|| Left::by(cx.waker()));
        // Noted before the socket is asked: tokio calls the waker at once when a task has done enough for its turn.
        if note.dry.swap(true, Ordering::Relaxed) {
            return Poll::Pending;
        }
        let polled = read(&mut Context::from_waker(waker));
        if polled.is_ready() {
            note.dry.store(false, Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::AsyncWriteExt;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_dry_socket_is_asked_again_once_its_waker_was_called() {
        let (mut near, mut far) = tokio::io::duplex(16);
        let (count, dry) = (Arc::new(Count::default()), Dry::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut space = [0; 16];
        let mut read = |cx: &mut Context<'_>, near: &mut _| {
            let mut buf = ReadBuf::new(&mut space);
            dry.poll_read(near, cx, &mut buf).map(|read| read.map(|()| buf.filled().len()).unwrap())
        };
        assert!(read(&mut cx, &mut near).is_pending());
        assert!(read(&mut cx, &mut near).is_pending());
        far.write_all(b"hello").await.unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(read(&mut cx, &mut near), Poll::Ready(5));
        assert!(read(&mut cx, &mut near).is_pending());
        // A task of its own that has not asked yet does not take another's word.
        far.write_all(b"x").await.unwrap();
        let other = Waker::from(Arc::new(Count::default()));
        assert_eq!(read(&mut Context::from_waker(&other), &mut near), Poll::Ready(1));
    }
}
