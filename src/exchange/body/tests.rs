use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// A client that has sent these pieces, and goes on when more are put in.
#[derive(Default)]
struct Pieces {
    left: RefCell<VecDeque<Bytes>>,
    ended: Cell<bool>,
    wanted: Cell<bool>,
}

impl BodySource for Pieces {
    fn splices(&self) -> bool {
        false
    }

    fn poll_pour(&self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn poll_piece(&self, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.left.borrow_mut().pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if self.ended.get() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_done(&self) -> bool {
        self.ended.get() && self.left.borrow().is_empty()
    }

    fn left(&self) -> Option<u64> {
        self.ended.get().then(|| self.left.borrow().iter().map(|piece| piece.len() as u64).sum())
    }

    fn want(&self, wanted: bool) {
        self.wanted.set(wanted);
    }
}

fn body(pieces: &[&[u8]]) -> (Rc<Pieces>, RequestBody) {
    let source = Rc::new(Pieces::default());
    source.left.borrow_mut().extend(pieces.iter().map(|piece| Bytes::copy_from_slice(piece)));
    let body = RequestBody::streamed(Rc::clone(&source) as Rc<dyn BodySource>, Rc::new(()));
    (source, body)
}

/// So many pieces of it, or as many as there are.
fn take(body: &mut RequestBody, pieces: usize) -> Vec<u8> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut taken = Vec::new();
    for _ in 0..pieces {
        match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => taken.extend_from_slice(frame.data_ref().unwrap()),
            _ => break,
        }
    }
    taken
}

#[test]
fn a_body_that_is_too_long_to_keep_is_not_taken_for_an_empty_one_once_it_is_sent() {
    for limit in [None, Some(3), Some(4)] {
        let (source, mut body) = body(&[b"ab", b"cd"]);
        if let Some(limit) = limit {
            body.keep(limit);
        }
        source.ended.set(true);
        assert_eq!(take(&mut body, 9), b"abcd");
        body.sent();
        assert_eq!(body.is_kept(), limit == Some(4), "{limit:?}");
        assert!(body.is_end_stream());
        assert_eq!(body.copy().is_some(), limit == Some(4));
    }
}

#[test]
fn a_body_that_nobody_takes_any_more_lets_its_client_go() {
    let (source, mut body) = body(&[b"ab"]);
    assert!(source.wanted.get());
    take(&mut body, 1);
    body.sent();
    assert!(!source.wanted.get());
}

#[test]
fn a_copy_is_made_of_a_whole_body_only() {
    let (source, mut body) = body(&[b"ab", b"cd"]);
    body.keep(10);
    take(&mut body, 2);
    assert!(body.copy().is_none());
    source.ended.set(true);
    take(&mut body, 1);
    // Its end was not seen yet: that takes a piece or the question for one.
    let mut copy = body.copy().unwrap();
    assert_eq!(copy.size_hint().exact(), Some(4));
    assert_eq!(take(&mut copy, 9), b"abcd");
    assert!(copy.is_end_stream() && RequestBody::empty().copy().is_some());
}

proptest! {
    /// However often and wherever it is begun anew, a kept body is the same each time.
    #[test]
    fn what_was_kept_comes_again(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5), 0..8),
        rounds in prop::collection::vec(0_usize..10, 0..6),
    ) {
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let whole = pieces.concat();
        let (source, mut body) = body(&refs);
        source.ended.set(true);
        body.keep(whole.len());
        for round in rounds {
            body.rewind();
            prop_assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            let taken = take(&mut body, round);
            prop_assert!(whole.starts_with(&taken));
            body.sent();
            prop_assert!(body.is_kept());
        }
        body.rewind();
        prop_assert_eq!(take(&mut body, 99), whole);
        prop_assert!(body.is_end_stream());
    }
}
